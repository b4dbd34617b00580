"""Errors that are shown to the user in one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The command can not go on; the message names the setting, its value and the remedy."""


def require_option(settings: object, name: str, fulfilled: bool, remedy: str) -> None:
    """Refuse the value of an option, which is an attribute of ``settings``, unless a condition is fulfilled.

    Raises:
        UserError: with the option, its value and the remedy.
    """
    if not fulfilled:
        raise UserError(f"--{name.replace('_', '-')}={getattr(settings, name)!r} {remedy}")


@contextmanager
def exit_on_error(*errors: type[Exception]) -> Iterator[None]:
    """Print an error of one of these kinds in one line, and end the command with exit code 1."""
    import typer

    try:
        yield
    except errors as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error

"""Errors that are shown to the user in one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The command can not go on; the message names the setting, its value and the remedy."""


def require_option(settings: object, name: str, fulfilled: bool, remedy: str) -> None:
    """Check one option of a command.

    Args:
        settings: has the option's value as an attribute.
        name: of the attribute; the option has hyphens in the place of underscores.
        fulfilled: whether the value can be used.
        remedy: the rest of the message, after the option and its value.

    Raises:
        UserError: the value can not be used.
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

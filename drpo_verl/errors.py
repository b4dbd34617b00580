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


def root_cause(error: BaseException) -> BaseException:
    """Return what was raised in the innermost of Ray's workers, of which Ray's own errors are reports."""
    while isinstance(cause := getattr(error, "cause", None), BaseException) and cause is not error:
        error = cause
    return error


def describe_error(error: BaseException) -> str:
    """Say in one line what was raised, in whichever of Ray's workers."""
    error = root_cause(error)
    # An exception that is made with several texts, as vLLM's are, is shown as a tuple of them.
    whole = str(error.args[0] if str(error) == str(error.args) and error.args else error)
    lines = whole.strip().splitlines() or [""]
    # Where there is no exception but Ray's text of one, its last line says what it was.
    text = lines[-1] if "Traceback" in whole else " ".join(lines)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


@contextmanager
def exit_on_error(*errors: type[Exception]) -> Iterator[None]:
    """Print an error of one of these kinds in one line, and end the command with exit code 1."""
    import typer

    try:
        yield
    except errors as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error

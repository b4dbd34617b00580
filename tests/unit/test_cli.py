"""The command line's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from drpo_verl.cli import app


def _commands(group: Any, parents: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*parents, name)
        if hasattr(command, "commands"):
            yield from _commands(command, (*parents, name))


@pytest.mark.parametrize("command", _commands(typer.main.get_command(app)), ids=" ".join)
def test_the_help_of_every_command_has_an_example(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    shown = re.sub(r"[│\s]+", " ", result.output)
    assert re.search(rf"Examples?: drpo-verl {' '.join(command)} \S", shown), result.output

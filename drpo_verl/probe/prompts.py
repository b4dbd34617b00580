"""The prompts of a probe: messages, as verl's data has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drpo_verl.data.faults import Columns, require_well_formed
from drpo_verl.data.parquet import read_parquet
from drpo_verl.errors import UserError
from drpo_verl.probe.settings import Settings

Messages = list[dict[str, Any]]

_COLUMN = "prompt"


def read(settings: Settings) -> list[Messages]:
    """Return the first ``settings.count`` prompts of the file, or all of fewer; none when the settings name no file.

    Raises:
        UserError: the file does not exist or holds no prompts.
    """
    path = settings.prompts
    if path is None:
        return []
    if not path.is_file():
        raise UserError(f"--prompts={str(path)!r} does not exist: give a verl parquet or a text file.")
    prompts = _from_parquet(path) if path.suffix == ".parquet" else _from_lines(path)
    if not prompts:
        raise UserError(f"--prompts={str(path)!r} holds no prompt.")
    return prompts[: settings.count]


def _from_lines(path: Path) -> list[Messages]:
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts={str(path)!r} is neither a .parquet file nor text.") from error
    return [[{"role": "user", "content": line}] for line in lines if line.strip()]


def _from_parquet(path: Path) -> list[Messages]:
    column = read_parquet("--prompts", path, [_COLUMN], [_COLUMN])[_COLUMN]
    require_well_formed("--prompts", path, Columns(prompt=_COLUMN, answers=False))
    prompts: list[Messages] = column.to_pylist()
    return prompts


def arithmetic(settings: Settings, model: str) -> list[Messages]:
    """Return ``settings.count`` arithmetic problems, written in the style that a model (a folder or name) reads."""
    from drpo_verl.models.tiny_policy import WARMUP_FILE
    from drpo_verl.rewards.arithmetic import Difficulty, Style, make_problems, render_chat

    # The tiny policy knows digits only. Of other models, small ones are hardly ever right about a difference.
    is_tiny = (Path(model) / WARMUP_FILE).exists()
    style: Style = "terse" if is_tiny else "natural"
    problems = make_problems("train", settings.count, seed=settings.seed, difficulty=Difficulty(subtraction=is_tiny))
    return [render_chat(problem, style) for problem in problems]

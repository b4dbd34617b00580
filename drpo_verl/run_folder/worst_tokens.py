"""The table of worst tokens: for each step, the token on which pi and mu differ most, in its context."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drpo_verl.run_folder.lines import LineReader, parse_json, refuse
from drpo_verl.seams import warn

PATH_VARIABLE = "DRPO_VERL_WORST_TOKENS"
"""The environment variable with the path of the table, which has one JSON object per line; unset, none is written."""

WORST_TOKENS_FILE = "worst_tokens.jsonl"
"""The name of the table in a run's folder."""

_MAX_LINES = 1000


@dataclass(frozen=True)
class WorstToken:
    """A line of the table.

    Attributes:
        step: global step of the trainer; None where the trainer does not tell.
        abs_prob_diff: abs(pi - mu).
        mu: probability of the token in the rollout engine.
        pi: probability of the token under the policy being trained.
        advantage: advantage A of the token.
        position: position of the token in its response, from 0.
        token: text of the token.
        context: end of the text before the token.
    """

    step: int | None
    abs_prob_diff: float
    mu: float
    pi: float
    advantage: float
    position: int
    token: str
    context: str


def append(worst: WorstToken, path: Path) -> None:
    """Add a line to the table, of which the last 1000 are kept; a reader sees complete lines only.

    Where the file can not be written (a disk is full), that is a warning: no run should end for the sake of the table.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines() if path.exists() else []
        lines.append(json.dumps(asdict(worst)).encode())
        written = path.with_name(f".{path.name}")
        written.write_bytes(b"".join(line + b"\n" for line in lines[-_MAX_LINES:]))
        written.replace(path)
    except OSError as error:
        warn(f"the worst token of step {worst.step} is not in the table: {error}")


def read(path: Path, left_out: Callable[[str], None] = refuse) -> list[WorstToken]:
    """Return the table's lines in order; none when there is no table.

    Args:
        path: of the table.
        left_out: told of each line that is none of the table, as ``FILE, line N: why``; by default it is an error.

    Raises:
        ValueError: when a line is none of the table, unless ``left_out`` is told of it.
    """
    tokens = []
    for line in LineReader(path).new():
        try:
            tokens.append(_worst_token(parse_json(line.text)))
        except ValueError as error:
            left_out(f"{path}, line {line.number}: {error}")
    return tokens


def _worst_token(record: Any) -> WorstToken:
    try:
        numbers = [record[name] for name in ("abs_prob_diff", "mu", "pi", "advantage")]
        if all(isinstance(number, int | float) for number in numbers):
            return WorstToken(**record)
    except (TypeError, KeyError):
        pass
    raise ValueError("is not a line of the table of worst tokens")

"""The table of worst tokens: for each step, the token on which pi and mu differ most, in its context."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PATH_VARIABLE = "DRPO_VERL_WORST_TOKENS"
"""The environment variable with the path of the table, one JSON object a line; without it none is written."""

WORST_TOKENS_FILE = "worst_tokens.jsonl"
"""Its name in a run's folder."""

_MAX_LINES = 1000


@dataclass(frozen=True)
class WorstToken:
    """A line of the table.

    Attributes:
        step: the trainer's global step; None where the trainer does not tell.
        abs_prob_diff: abs(pi - mu).
        mu: its probability in the rollout engine.
        pi: its probability under the policy being trained.
        advantage: A.
        position: in its response, from 0.
        token: its text.
        context: the text of the tokens before it, cut at its beginning.
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
    """Add a line to the table, of which the last ``_MAX_LINES`` are kept; a reader sees whole lines only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    lines.append(json.dumps(asdict(worst)))
    written = path.with_name(f".{path.name}")
    written.write_text("".join(f"{line}\n" for line in lines[-_MAX_LINES:]))
    written.replace(path)


def read(path: Path) -> list[WorstToken]:
    """The table's lines in order; none when there is no table."""
    if not path.exists():
        return []
    return [WorstToken(**json.loads(line)) for line in path.read_text().splitlines()]

"""The table of worst tokens: for each step, the token on which pi and mu differ most, in its context."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """Add a line to the table, of which the last 1000 are kept; a reader sees complete lines only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    lines.append(json.dumps(asdict(worst)))
    written = path.with_name(f".{path.name}")
    written.write_text("".join(f"{line}\n" for line in lines[-_MAX_LINES:]))
    written.replace(path)


def read(path: Path) -> list[WorstToken]:
    """Return the table's lines in order; none when there is no table."""
    if not path.exists():
        return []
    return [WorstToken(**json.loads(line)) for line in path.read_text().splitlines()]

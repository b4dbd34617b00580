"""The problems of an evaluation, read from a verl parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpo_verl.data.faults import Columns, require_well_formed
from drpo_verl.data.parquet import read_parquet
from drpo_verl.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One problem; rows with the same data source and prompt are one problem, with samples for each row.

    Attributes:
        data_source: what the reward goes by, and the results are reported by.
        prompt: messages.
        ground_truth: the right answer.
        extra_info: further columns, as the reward gets them.
        rows: number of rows that have this problem.
    """

    data_source: str
    prompt: list[dict[str, Any]]
    ground_truth: str
    extra_info: dict[str, Any]
    rows: int = 1


def read(path: Path) -> list[Problem]:
    """Return the problems of a parquet file in its order.

    Raises:
        UserError: the file is not one that verl's trainer reads, a row can not be used, or it is empty.
    """
    problems: dict[tuple[str, str], Problem] = {}
    table = read_parquet("DATA", path, ("data_source", "prompt", "reward_model"))
    require_well_formed("DATA", path, Columns())
    for row in table.to_pylist():
        key = (row["data_source"], repr(row["prompt"]))
        problems[key] = Problem(
            row["data_source"],
            row["prompt"],
            str(row["reward_model"]["ground_truth"]),
            row.get("extra_info") or {},
            problems[key].rows + 1 if key in problems else 1,
        )
    if not problems:
        raise UserError(f"DATA={str(path)!r} holds no problem.")
    return list(problems.values())

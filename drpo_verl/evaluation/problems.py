"""The problems of a verl parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpo_verl.errors import UserError

_COLUMNS = ("data_source", "prompt", "reward_model")


@dataclass(frozen=True)
class Problem:
    """One problem: rows with the same prompt and source are one, sampled once for each.

    Attributes:
        data_source: by which the reward goes, and the results are reported.
        prompt: messages.
        ground_truth: the right answer.
        extra_info: as the reward gets it.
        rows: how often it is in the file.
    """

    data_source: str
    prompt: list[dict[str, Any]]
    ground_truth: str
    extra_info: dict[str, Any]
    rows: int = 1


def read(path: Path) -> list[Problem]:
    """The problems of a parquet, in its order.

    Args:
        path: of the file.

    Raises:
        UserError: it is none as verl's trainer reads it, with the remedy.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"DATA={str(path)!r} does not exist: give a verl parquet, as drpo-verl data writes them.")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"DATA={str(path)!r} is not a parquet file: {error}") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(
            f"DATA={str(path)!r} has no column {missing[0]!r} (its columns: {', '.join(table.column_names)}): give a "
            "verl parquet, as drpo-verl data writes them."
        )
    found: dict[tuple[str, str], Problem] = {}
    for row in table.to_pylist():
        key = (row["data_source"], repr(row["prompt"]))
        rows = found[key].rows + 1 if key in found else 1
        found[key] = Problem(
            row["data_source"],
            row["prompt"],
            str(row["reward_model"]["ground_truth"]),
            row.get("extra_info") or {},
            rows,
        )
    if not found:
        raise UserError(f"DATA={str(path)!r} holds no problem.")
    return list(found.values())

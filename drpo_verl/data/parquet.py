"""Reading the parquet files that verl's trainer reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drpo_verl.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_REMEDY = "give a verl parquet, as drpo-verl data writes them"


def read_parquet(option: str, path: Path, required: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file that a user names.

    Args:
        option: what the user writes before the path, for messages: "DATA" or "--prompts".
        path: of the file.
        required: columns that the file must have.
        columns: columns to read; None for all.

    Raises:
        UserError: there is no such file, it is not a parquet file, or it lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{option}={str(path)!r} does not exist: {_REMEDY}.")
    try:
        names = pq.read_schema(path).names
        missing = [name for name in required if name not in names]
        if missing:
            raise UserError(
                f"{option}={str(path)!r} has no column {missing[0]!r} (its columns: {', '.join(names)}): {_REMEDY}."
            )
        return pq.read_table(path, columns=columns)
    except pa.ArrowInvalid as error:
        raise UserError(f"{option}={str(path)!r} is not a parquet file: {error}") from error

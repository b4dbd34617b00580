"""What the model is asked: messages, as verl's data has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drpo_verl.probe.settings import ProbeError, Settings

Messages = list[dict[str, Any]]

_COLUMN = "prompt"


def read(settings: Settings) -> list[Messages]:
    """The first ``settings.count`` prompts of the file, or fewer where there are no more; none without a file.

    Raises:
        ProbeError: naming the file and what is wrong with it.
    """
    path = settings.prompts
    if path is None:
        return []
    if not path.is_file():
        raise ProbeError(f"--prompts={str(path)!r} does not exist: give a verl parquet or a text file.")
    prompts = _parquet(path) if path.suffix == ".parquet" else _lines(path)
    if not prompts:
        raise ProbeError(f"--prompts={str(path)!r} holds no prompt.")
    return prompts[: settings.count]


def _lines(path: Path) -> list[Messages]:
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ProbeError(f"--prompts={str(path)!r} is neither a .parquet file nor text.") from error
    return [[{"role": "user", "content": line}] for line in lines if line.strip()]


def _parquet(path: Path) -> list[Messages]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ProbeError(f"--prompts={str(path)!r} is not a parquet file: {error}") from error
    if _COLUMN not in schema.names or not pa.types.is_list(schema.field(_COLUMN).type):
        raise ProbeError(
            f"--prompts={str(path)!r} has no column {_COLUMN!r} of messages (its columns: {', '.join(schema.names)}): "
            "give a parquet as verl's RLHFDataset reads it."
        )
    return [row for row in pq.read_table(path, columns=[_COLUMN])[_COLUMN].to_pylist() if row]


def arithmetic(settings: Settings, model: str) -> list[Messages]:
    """``settings.count`` arithmetic problems, in the style of a model.

    Args:
        settings: how many, and the seed.
        model: the resolved one.
    """
    from drpo_verl.models.tiny_policy import WARMUP_FILE
    from drpo_verl.rewards.arithmetic import Difficulty, Style, make_problems, render_chat

    # The tiny policy knows digits only. Of other models, small ones are hardly ever right about a difference.
    is_tiny = (Path(model) / WARMUP_FILE).exists()
    style: Style = "terse" if is_tiny else "natural"
    problems = make_problems("train", settings.count, seed=settings.seed, difficulty=Difficulty(subtraction=is_tiny))
    return [render_chat(problem, style) for problem in problems]

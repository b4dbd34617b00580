"""Rows of a source as verl wants them: one to a problem, with an answer, asking for it in a way the reward reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from drpo_verl.data.table import Part
from drpo_verl.errors import UserError

INSTRUCTION = "\n\nLet's think step by step and output the final answer within \\boxed{}."
"""verl's own, of its MATH example."""

_ASKED = re.compile(r"\\boxed|\banswer:", re.IGNORECASE)
_BATCH = 8192


@dataclass
class Counts:
    """What became of a part's rows.

    Attributes:
        read: in its files.
        unusable: dropped, since prompt or answer is empty.
        duplicates: dropped, since their problem was there already.
        contradicting: of the duplicates, those with another answer.
        written: what is left.
        instructed: of these, those whose prompt said nothing of a box or an answer's line, and got an instruction.
    """

    read: int = 0
    unusable: int = 0
    duplicates: int = 0
    contradicting: int = 0
    written: int = 0
    instructed: int = 0

    def as_dict(self) -> dict[str, int]:
        """For the manifest."""
        return asdict(self)


def read(part: Part, files: Mapping[str, Path], progress: Progress) -> tuple[list[dict[str, Any]], Counts]:
    """The problems of a part.

    Args:
        part: of the table.
        files: its files, by name.
        progress: of the rows.

    Raises:
        UserError: a file can not be read, or lacks a column.
    """
    counts = Counts()
    answers: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for path in files.values():
        for row in _rows(path, part, progress):
            counts.read += 1
            prompt, answer = _messages(row["prompt"]), _answer(row["reward_model"])
            if not answer or not any(message["content"].strip() for message in prompt):
                counts.unusable += 1
                continue
            key = _key(part, row, prompt)
            if key in answers:
                counts.duplicates += 1
                counts.contradicting += answers[key] != answer
                continue
            answers[key] = answer
            if not any(_ASKED.search(message["content"]) for message in prompt):
                prompt[-1] = {**prompt[-1], "content": prompt[-1]["content"].rstrip() + INSTRUCTION}
                counts.instructed += 1
            rows.append(
                {
                    "data_source": part.data_source,
                    "prompt": prompt,
                    "ability": "math",
                    "reward_model": {"style": "rule", "ground_truth": answer},
                    "extra_info": {"index": len(rows), "split": part.output},
                }
            )
    counts.written = len(rows)
    return rows, counts


def _rows(path: Path, part: Part, progress: Progress) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # extra_info only where it is needed: its type differs between the files of one repository.
    columns = ["prompt", "reward_model", *(["extra_info"] if part.same == "index" else [])]
    try:
        file = pq.ParquetFile(path)
        missing = [column for column in columns if column not in file.schema_arrow.names]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r} (its columns: {', '.join(file.schema_arrow.names)}): "
                "it is not of the shape that this data set had when drpo-verl learned to read it."
            )
        task = progress.add_task(f"reading {path.name}", total=file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            yield from batch.to_pylist()
            progress.advance(task, batch.num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is truncated or no parquet file ({error}): download it again.") from error


def _messages(prompt: Any) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": str(each["role"]), "content": str(each["content"] or "")} for each in prompt or []]


def _answer(reward_model: Any) -> str:
    truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    return "" if truth is None else str(truth).strip()


def _key(part: Part, row: dict[str, Any], prompt: list[dict[str, str]]) -> str:
    if part.same == "index":
        return str(row["extra_info"]["index"])
    return "\0".join(" ".join(message["content"].split()) for message in prompt)

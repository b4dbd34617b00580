"""Turns the rows of a source into verl's: one per problem, with an answer, and a prompt that says how to give it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from drpo_verl.data.faults import NO_ANSWER, Columns, faults
from drpo_verl.data.table import Part
from drpo_verl.errors import UserError

INSTRUCTION = "\n\nLet's think step by step and output the final answer within \\boxed{}."
"""The instruction of verl's example for MATH."""

_ASKS_FOR_ANSWER = re.compile(r"\\boxed|\banswer:", re.IGNORECASE)
_BATCH = 8192


@dataclass
class Counts:
    """What became of the rows of a part.

    Attributes:
        read: rows in its files.
        unusable: rows dropped since their prompt or answer is empty.
        duplicates: rows dropped since an earlier row has the same problem.
        contradicting: duplicates whose answer is another one.
        written: rows that are left.
        instructed: rows left whose prompt did not ask for a box or a line with the answer, and got an instruction.
    """

    read: int = 0
    unusable: int = 0
    duplicates: int = 0
    contradicting: int = 0
    written: int = 0
    instructed: int = 0


def read(
    part: Part, files: Mapping[str, Path], progress: Progress, *, drop_empty: bool = True
) -> tuple[list[dict[str, Any]], Counts]:
    """Read the problems of a part.

    Args:
        part: a part of a data set of the table.
        files: paths of its files, by their names in the repository.
        progress: shows how many rows have been read.
        drop_empty: whether rows without a prompt or an answer are dropped and counted; otherwise they are refused, as
            are prompts and answers of a wrong kind in any case.

    Raises:
        UserError: a file can not be read, lacks a column, or has a row that is refused.
    """
    counts = Counts()
    answers: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for path in files.values():
        _refuse_faults(path, part, drop_empty)
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
            if not any(_ASKS_FOR_ANSWER.search(message["content"]) for message in prompt):
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


def _columns(part: Part) -> list[str]:
    # extra_info is read only where it is needed: its type differs between the files of one repository.
    return ["prompt", "reward_model", *(["extra_info"] if part.same == "index" else [])]


def _refuse_faults(path: Path, part: Part, drop_empty: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        missing = [column for column in _columns(part) if column not in names]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r} (its columns: {', '.join(names)}): "
                "it has not the shape that this data set had when drpo-verl learned to read it."
            )
        found = faults(path, Columns(text_prompts=True, data_source=False))
    except (pa.ArrowException, OSError) as error:
        raise UserError(_truncated(path, error)) from error
    refused = [fault for fault in found if not (fault.is_empty and drop_empty)]
    if refused:
        raise UserError(f"{path}, " + "; ".join(f"{fault} {fault.remedy}" for fault in refused))


def _truncated(path: Path, error: Exception) -> str:
    return f"{path} is truncated or no parquet file ({error}): download it again."


def _rows(path: Path, part: Part, progress: Progress) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _columns(part)
    try:
        file = pq.ParquetFile(path)
        task = progress.add_task(f"reading {path.name}", total=file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            yield from batch.to_pylist()
            progress.advance(task, batch.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(_truncated(path, error)) from error


def _messages(prompt: Any) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": str(message["role"]), "content": str(message["content"] or "")} for message in prompt or []]


def _answer(reward_model: Any) -> str:
    truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    answer = "" if truth is None else str(truth).strip()
    return "" if answer.lower() in NO_ANSWER else answer


def _key(part: Part, row: dict[str, Any], prompt: list[dict[str, str]]) -> str:
    if part.same == "index":
        return str(row["extra_info"]["index"])
    return "\0".join(" ".join(message["content"].split()) for message in prompt)

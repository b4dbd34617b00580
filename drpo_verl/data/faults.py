"""Finds the rows of a verl parquet file that can not be trained or evaluated on, before anything starts.

The columns are examined batch by batch with pyarrow's compute functions, so that a million rows take seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drpo_verl.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Mask = npt.NDArray[np.bool_]
    """A value for each row of a batch."""

TRUTH = "reward_model.ground_truth"
"""The full name of the right answer, as messages have it."""
_BATCH = 65_536
_SHOWN = 3
"""Rows that a message names; the others are counted."""
_MESSAGES = "Write it as a list of messages, each with role and content."
_TEXT = "Write the right answer as text."
NO_ANSWER = ("nan", "none", "null", "<na>")
"""What pandas and Python make of a missing value as text."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a column of a file.

    Attributes:
        column: the column, with dots before the fields of a struct.
        problem: what is wrong, to be read after the column's name.
        remedy: what to do about it, as a sentence.
        rows: the first rows that have it, counted from 0.
        count: how many rows have it.
        is_empty: whether a value is missing, rather than of a wrong kind; `drpo-verl data` drops such rows.
    """

    column: str
    problem: str
    remedy: str
    rows: tuple[int, ...]
    count: int
    is_empty: bool = False

    def __str__(self) -> str:
        """Rows, column and problem in a few words."""
        shown = ", ".join(f"{row:,}" for row in self.rows)
        others = f" and {self.count - len(self.rows):,} others" if self.count > len(self.rows) else ""
        return f"row{'s' if self.count > 1 else ''} {shown}{others} (counted from 0): {self.column} {self.problem}"


@dataclass(frozen=True)
class _Fault:
    column: str
    problem: str
    remedy: str
    mask: Mask
    is_empty: bool = False


@dataclass(frozen=True)
class Columns:
    """Which columns a reader takes from a file, and what they have to be.

    Attributes:
        prompt: the column with the messages; None to leave prompts alone.
        answers: whether there have to be answers, in the struct `reward_model`.
        data_source: whether the column `data_source` is read, and extra_info with it.
        text_answers: whether the reward compares texts, as drpo-verl's and verl's own do. Another may take any value.
        whole_answers: whether it takes a whole number for its text, as drpo-verl's does. To verl's own, 2 is not "2".
        text_prompts: whether a prompt may be text instead of messages.
    """

    prompt: str | None = "prompt"
    answers: bool = True
    data_source: bool = True
    text_answers: bool = True
    whole_answers: bool = True
    text_prompts: bool = False


def faults(path: Path, columns: Columns) -> list[Fault]:
    """Find what is wrong with the rows of a parquet file.

    Args:
        path: of the file, which has the columns.
        columns: what is read of it.
    """
    import numpy as np
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    wanted = [columns.prompt, *(["reward_model"] if columns.answers else [])]
    wanted += ["data_source", "extra_info"] if columns.answers and columns.data_source else []
    present = [name for name in wanted if name in file.schema_arrow.names]
    kinds: dict[tuple[str, str], _Fault] = {}
    rows: dict[tuple[str, str], list[int]] = {}
    counts: dict[tuple[str, str], int] = {}
    offset = 0
    for batch in file.iter_batches(batch_size=_BATCH, columns=present):
        for found in _examine(batch, columns):
            at = np.flatnonzero(found.mask)
            if not at.size:
                continue
            key = found.column, found.problem
            kinds.setdefault(key, found)
            counts[key] = counts.get(key, 0) + at.size
            first = rows.setdefault(key, [])
            first += [offset + int(row) for row in at[: _SHOWN - len(first)]]
        offset += batch.num_rows
    return [
        Fault(found.column, found.problem, found.remedy, tuple(rows[key]), counts[key], found.is_empty)
        for key, found in kinds.items()
    ]


def require_well_formed(option: str, path: Path, columns: Columns) -> None:
    """Refuse a file with rows that can not be used.

    Args:
        option: what the user writes before the path, for the message.
        path: of the file.
        columns: what is read of it.

    Raises:
        UserError: naming the file, the rows and the column.
    """
    found = faults(path, columns)
    if found:
        raise UserError(f"{option}={str(path)!r}, " + "; ".join(f"{fault} {fault.remedy}" for fault in found))


def _examine(batch: pa.RecordBatch, columns: Columns) -> Iterator[_Fault]:
    arrays = {name: _plain(batch.column(name)) for name in batch.schema.names}
    if columns.prompt is not None and columns.prompt in arrays:
        yield from _prompts(columns.prompt, arrays[columns.prompt], columns.text_prompts)
    if "reward_model" in arrays:
        yield from _answers(arrays, columns)
    if "extra_info" in arrays:
        yield from _extra_info(arrays, columns.text_answers)


def _plain(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _mask(array: Any) -> Mask:
    import numpy as np
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)


def _everywhere(array: pa.Array) -> Mask:
    import numpy as np

    return np.ones(len(array), dtype=bool)


def _is_blank(array: pa.Array) -> Mask:
    import pyarrow.compute as pc

    return _mask(pc.invert(pc.match_substring_regex(array, r"\S")))


def _prompts(column: str, prompts: pa.Array, text_prompts: bool) -> Iterator[_Fault]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = prompts.type
    missing = _mask(pc.is_null(prompts))
    yield _Fault(column, "is null.", _MESSAGES, missing, True)
    if pa.types.is_null(kind):
        return
    if _is_text(kind):
        if text_prompts:
            yield _Fault(column, "is empty.", _MESSAGES, _is_blank(prompts), True)
        else:
            yield _Fault(column, "is text, not a list of messages.", _MESSAGES, ~missing)
        return
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    message = kind.value_type if is_list else None
    names = {field.name for field in message} if message is not None and pa.types.is_struct(message) else set()
    if not {"role", "content"} <= names:
        yield _Fault(column, f"is {kind}, not a list of messages.", _MESSAGES, ~missing)
        return
    yield _Fault(column, "is an empty list.", _MESSAGES, _mask(pc.equal(pc.list_value_length(prompts), 0)), True)
    messages, parents = pc.list_flatten(prompts), pc.list_parent_indices(prompts).to_numpy()
    role, content = (_plain(pc.struct_field(messages, name)) for name in ("role", "content"))

    def any_of_a_row(mask: Mask) -> Mask:
        return np.asarray(np.bincount(parents, weights=mask, minlength=len(prompts)) > 0)

    if not _is_text(role.type):
        yield _Fault(column, "has a message whose role is no text.", _MESSAGES, any_of_a_row(_everywhere(role)))
        return
    yield _Fault(column, "has a message without a role.", _MESSAGES, any_of_a_row(_mask(pc.is_null(role))))
    # An assistant's message may consist of calls of tools.
    without = _mask(pc.is_null(content)) & ~_mask(pc.equal(role, "assistant"))
    yield _Fault(column, "has a message without content.", _MESSAGES, any_of_a_row(without), True)
    if _is_text(content.type):
        some = any_of_a_row(~_is_blank(content) & ~_mask(pc.is_null(content)))
        filled = ~missing & _mask(pc.greater(pc.list_value_length(prompts), 0)) & ~any_of_a_row(without)
        yield _Fault(column, "has no text.", _MESSAGES, filled & ~some, True)
    elif not (pa.types.is_list(content.type) or pa.types.is_null(content.type)):  # a list has texts, images, videos
        problem = f"has content of the type {content.type}, not text."
        yield _Fault(column, problem, _MESSAGES, any_of_a_row(_mask(pc.is_valid(content))))


def _answers(arrays: dict[str, pa.Array], columns: Columns) -> Iterator[_Fault]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from drpo_verl.rewards.arithmetic import DATA_SOURCE as ARITHMETIC
    from drpo_verl.rewards.literals import NUMBER

    rewards, sources = arrays["reward_model"], arrays.get("data_source")
    if columns.text_answers and sources is not None:
        by = "It says how a response is scored: write it as text."
        if not _is_text(sources.type):
            yield _Fault("data_source", f"is {sources.type}, not text.", by, _everywhere(sources))
            return
        yield _Fault("data_source", "is null.", by, _mask(pc.is_null(sources)))
    missing = _mask(pc.is_null(rewards))
    struct = "Write it as a struct with the right answer in ground_truth."
    yield _Fault("reward_model", "is null.", struct, missing, True)
    if pa.types.is_null(rewards.type):
        return
    if not pa.types.is_struct(rewards.type):
        yield _Fault("reward_model", f"is {rewards.type}, not a struct with ground_truth.", struct, ~missing)
        return
    if "ground_truth" not in {field.name for field in rewards.type}:
        yield _Fault(TRUTH, "is missing.", struct, ~missing)
        return
    if not columns.text_answers:
        return
    truth = _plain(pc.struct_field(rewards, "ground_truth"))
    yield _Fault(TRUTH, "is null.", _TEXT, _mask(pc.is_null(truth)) & ~missing, True)
    kind = truth.type
    if pa.types.is_floating(kind):
        nan = _mask(pc.is_nan(truth))
        yield _Fault(TRUTH, "is NaN.", _TEXT, nan, True)
        yield _Fault(TRUTH, f"is {kind}, not text.", _TEXT, _mask(pc.is_valid(truth)) & ~nan)
    elif not (_is_text(kind) or (pa.types.is_integer(kind) and columns.whole_answers) or pa.types.is_null(kind)):
        yield _Fault(TRUTH, f"is {kind}, not text.", _TEXT, _mask(pc.is_valid(truth)))
    if not _is_text(kind):
        return
    yield _Fault(TRUTH, "is empty.", _TEXT, _is_blank(truth), True)
    lower = pc.utf8_lower(pc.utf8_trim_whitespace(truth))
    word = _mask(pc.is_in(lower, value_set=pa.array(NO_ANSWER, lower.type)))
    if sources is not None:
        word &= ~_is_of_reasoning_gym(sources)  # whose answers may be such words
        number = _mask(pc.match_substring_regex(truth, rf"^(?:{NUMBER.pattern})$"))
        of_arithmetic = _mask(pc.equal(sources, ARITHMETIC)) & _mask(pc.is_valid(truth)) & ~word & ~_is_blank(truth)
        yield _Fault(TRUTH, f"is not a number, as {ARITHMETIC} has it.", _TEXT, of_arithmetic & ~number)
    yield _Fault(TRUTH, "is a missing value written as text (nan, None, null).", _TEXT, word, True)


def _is_of_reasoning_gym(sources: pa.Array) -> Mask:
    import pyarrow.compute as pc

    from drpo_verl.rewards.gym import PREFIX

    return _mask(pc.starts_with(sources, PREFIX))


def _extra_info(arrays: dict[str, pa.Array], text_answers: bool) -> Iterator[_Fault]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    info, sources = arrays["extra_info"], arrays.get("data_source")
    kind = info.type
    if not (pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_null(kind)):
        yield _Fault("extra_info", f"is {kind}, not a struct.", "Write it as a struct.", _mask(pc.is_valid(info)))
        return
    if not text_answers or sources is None or not _is_text(sources.type):
        return
    gym = _is_of_reasoning_gym(sources)
    entry = None
    if pa.types.is_struct(kind) and "entry" in {field.name for field in kind}:
        entry = _plain(pc.struct_field(info, "entry"))
    has_entry = np.zeros(len(info), bool) if entry is None or not _is_text(entry.type) else _mask(pc.is_valid(entry))
    remedy = "Make the file with drpo-verl data reasoning_gym."
    yield _Fault("extra_info.entry", "is missing, which the scorer of reasoning_gym takes.", remedy, gym & ~has_entry)

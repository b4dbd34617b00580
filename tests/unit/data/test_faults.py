"""Rows that can not be used are found with their number and column, whatever the types of the file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drpo_verl.data import faults as module
from drpo_verl.data.faults import Columns, Fault, faults
from drpo_verl.rewards.reward import compute_score

MESSAGES = [{"role": "user", "content": "1+1"}]
GOOD: dict[str, Any] = {
    "data_source": "math_dapo", "prompt": MESSAGES, "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0},
}  # fmt: skip


def found(tmp_path: Path, *rows: dict[str, Any] | pa.Table, columns: Columns = Columns()) -> list[Fault]:  # noqa: B008
    table = rows[0] if isinstance(rows[0], pa.Table) else pa.Table.from_pylist([{**GOOD, **row} for row in rows])
    pq.write_table(table, tmp_path / "data.parquet")
    return faults(tmp_path / "data.parquet", columns)


def truth(value: Any) -> dict[str, Any]:
    return {"reward_model": {"style": "rule", "ground_truth": value}}


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        (truth(None), "reward_model.ground_truth", "is null."),
        (truth(" \n"), "reward_model.ground_truth", "is empty."),
        (truth("NaN"), "reward_model.ground_truth", "is a missing value written as text (nan, None, null)."),
        (truth("None"), "reward_model.ground_truth", "is a missing value written as text (nan, None, null)."),
        ({"reward_model": None}, "reward_model", "is null."),
        ({"data_source": None}, "data_source", "is null."),
        ({"prompt": None}, "prompt", "is null."),
        ({"prompt": []}, "prompt", "is an empty list."),
        ({"prompt": [{"role": "user", "content": " "}]}, "prompt", "has no text."),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt", "has a message without content."),
        ({"prompt": [*MESSAGES, {"role": "user", "content": None}]}, "prompt", "has a message without content."),
        ({"prompt": [{"role": None, "content": "1+1"}]}, "prompt", "has a message without a role."),
        ({"data_source": "drpo_verl/arithmetic", **truth("two")}, "reward_model.ground_truth",
         "is not a number, as drpo_verl/arithmetic has it."),
        ({"data_source": "reasoning_gym/chain_sum"}, "extra_info.entry",
         "is missing, which the scorer of reasoning_gym takes."),
    ],
)  # fmt: skip
def test_one_bad_row(tmp_path: Path, row: dict[str, Any], column: str, problem: str) -> None:
    (fault,) = found(tmp_path, {}, {}, row, {})
    assert (fault.column, fault.problem, fault.rows, fault.count) == (column, problem, (2,), 1)
    assert fault.remedy and str(fault) == f"row 2 (counted from 0): {column} {problem}"


@pytest.mark.parametrize(
    ("rows", "column", "problem"),
    [
        ([truth(["2"])], "reward_model.ground_truth", "is list<element: string>, not text."),
        ([truth({"a": "2"})], "reward_model.ground_truth", "is struct<a: string>, not text."),
        ([truth(True)], "reward_model.ground_truth", "is bool, not text."),
        ([truth(2.0)], "reward_model.ground_truth", "is double, not text."),
        ([truth(float("nan"))], "reward_model.ground_truth", "is NaN."),
        ([truth(None)], "reward_model.ground_truth", "is null."),
        ([{"reward_model": {"style": "rule"}}], "reward_model.ground_truth", "is missing."),
        ([{"reward_model": "2"}], "reward_model", "is string, not a struct with ground_truth."),
        ([{"reward_model": None}], "reward_model", "is null."),
        ([{"prompt": "1+1"}], "prompt", "is text, not a list of messages."),
        ([{"prompt": None}], "prompt", "is null."),
        ([{"prompt": ["1+1"]}], "prompt", "is list<element: string>, not a list of messages."),
        ([{"prompt": MESSAGES[0]}], "prompt", "is struct<content: string, role: string>, not a list of messages."),
        ([{"prompt": [{"content": "1+1"}]}], "prompt",
         "is list<element: struct<content: string>>, not a list of messages."),
        ([{"prompt": [{"role": 1, "content": "1+1"}]}], "prompt", "has a message whose role is no text."),
        ([{"prompt": [{"role": "user", "content": 11}]}], "prompt", "has content of the type int64, not text."),
        ([{"data_source": 1}], "data_source", "is int64, not text."),
        ([{"extra_info": "{}"}], "extra_info", "is string, not a struct."),
    ],
)  # fmt: skip
def test_a_whole_column(tmp_path: Path, rows: list[dict[str, Any]], column: str, problem: str) -> None:
    (fault,) = found(tmp_path, *rows * 5)
    assert (fault.column, fault.rows, fault.count) == (column, (0, 1, 2), 5)
    # Arrow orders the fields of a struct as they come.
    assert sorted(fault.problem) == sorted(problem)
    assert str(fault).startswith("rows 0, 1, 2 and 2 others (counted from 0): ")


@pytest.mark.parametrize(
    "row",
    [
        {},
        truth(46), truth(-1),
        {"extra_info": None},
        {"prompt": [{"role": "system", "content": ""}, *MESSAGES]},
        {"prompt": [*MESSAGES, {"role": "assistant", "content": None}, *MESSAGES]},  # which calls a tool
        {"prompt": [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "1+1"}]}]},
        {"data_source": "drpo_verl/arithmetic", **truth("1,046.5")},
        {"data_source": "reasoning_gym/chain_sum", "extra_info": {"entry": "{}"}, **truth("None")},
    ],
)  # fmt: skip
def test_what_can_be_used(tmp_path: Path, row: dict[str, Any]) -> None:
    assert not found(tmp_path, row, row)


def test_large_and_dictionary_encoded_types(tmp_path: Path) -> None:
    message = pa.struct([("role", pa.dictionary(pa.int32(), pa.string())), ("content", pa.large_string())])
    reward_model = pa.struct([("ground_truth", pa.dictionary(pa.int32(), pa.string()))])
    schema = pa.schema([
        ("data_source", pa.dictionary(pa.int32(), pa.string())), ("prompt", pa.large_list(message)),
        ("reward_model", reward_model), ("extra_info", pa.map_(pa.string(), pa.string())),
    ])  # fmt: skip
    rows = [{**GOOD, "extra_info": [("index", "0")]} for _ in range(3)]
    assert not found(tmp_path, pa.Table.from_pylist(rows, schema))
    rows[1] = {**rows[1], "prompt": [], **truth(None)}
    assert [(each.column, each.rows) for each in found(tmp_path, pa.Table.from_pylist(rows, schema))] == [
        ("prompt", (1,)), ("reward_model.ground_truth", (1,))
    ]  # fmt: skip


def test_what_a_reader_does_not_need(tmp_path: Path) -> None:
    assert not found(tmp_path, truth(["2"]), columns=Columns(text_answers=False))
    assert found(tmp_path, {"reward_model": {"style": "rule"}}, columns=Columns(text_answers=False))
    assert not found(tmp_path, {"reward_model": None}, columns=Columns(answers=False))
    assert not found(tmp_path, {"prompt": "1+1"}, columns=Columns(text_prompts=True))
    assert found(tmp_path, {"prompt": " "}, columns=Columns(text_prompts=True))[0].is_empty
    assert not found(tmp_path, {"data_source": None}, columns=Columns(data_source=False))


def test_rows_are_counted_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 4)
    (fault,) = found(tmp_path, *[truth(None if row % 3 == 2 else "2") for row in range(20)])
    assert (fault.rows, fault.count) == ((2, 5, 8), 6)
    assert str(fault).startswith("rows 2, 5, 8 and 3 others")
    two = [*MESSAGES, {"role": "assistant", "content": "2"}]
    prompts = [
        None,
        two,
        [],
        MESSAGES,
        [{"role": "user", "content": None}],
        two,
        two,
        [{"role": "user", "content": ""}],
    ]
    problems = {each.problem: each.rows for each in found(tmp_path, *[{"prompt": prompt} for prompt in prompts])}
    assert problems == {
        "is null.": (0,), "is an empty list.": (2,), "has a message without content.": (4,), "has no text.": (7,)
    }  # fmt: skip


def test_a_hundred_thousand_rows_take_less_than_seconds(tmp_path: Path) -> None:
    # A million took 1.2 s on two cores; row by row it would be minutes.
    prompts = [[{"role": "user", "content": "x " * 300 + str(row)}] for row in range(100_000)]
    table = pa.table({
        "data_source": ["math_dapo"] * len(prompts), "prompt": prompts,
        "reward_model": [{"ground_truth": str(row)} for row in range(len(prompts))],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "data.parquet")
    began = time.perf_counter()
    assert not faults(tmp_path / "data.parquet", Columns())
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("source", ["math_dapo", "drpo_verl/arithmetic"])
def test_a_whole_number_is_scored_as_its_text(source: str) -> None:
    for truth, score in ((46, 1.0), (np.int64(46), 1.0), (45, 0.0)):
        assert compute_score(source, "\\boxed{46}", truth) == score  # type: ignore[arg-type]

"""What an evaluation reads, refuses, counts and shows, without a model."""

from __future__ import annotations

from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from drpo_verl.errors import UserError
from drpo_verl.evaluation import report
from drpo_verl.evaluation.problems import Problem, read
from drpo_verl.evaluation.run import Response, _score, summarise
from drpo_verl.evaluation.settings import Settings


def row(question: str, answer: str, source: str) -> dict[str, Any]:
    return {
        "data_source": source, "prompt": [{"role": "user", "content": question}], "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer}, "extra_info": {"index": 0},
    }  # fmt: skip


def test_rows_with_the_same_prompt_are_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    rows = [row("1+1", "2", "a"), row("1+2", "3", "a"), row("1+1", "2", "a"), row("1+1", "2", "b")]
    pq.write_table(pa.Table.from_pylist(rows), path)
    problems = read(path)
    assert [(each.data_source, each.prompt[0]["content"], each.rows) for each in problems] == [
        ("a", "1+1", 2), ("a", "1+2", 1), ("b", "1+1", 1)
    ]  # fmt: skip
    assert problems[0].ground_truth == "2" and problems[0].extra_info == {"index": 0}


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DATA='.*nothing\.parquet' does not exist: give a verl parquet"):
        read(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(UserError, match="is not a parquet file"):
        read(tmp_path / "text.parquet")
    pq.write_table(pa.table({"question": ["1+1"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"has no column 'data_source' \(its columns: question\)"):
        read(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"row 1 \(counted from 0\): reward_model\.ground_truth is null"),
        ("", r"row 1 .*ground_truth is empty"),
        (["2"], r"rows 0, 1 .*ground_truth is list<element: string>, not text"),
        ("nan", r"row 1 .*a missing value written as text"),
    ],
)
def test_problems_without_an_answer_are_refused(tmp_path: Path, answer: Any, message: str) -> None:
    path = tmp_path / "test.parquet"
    first = answer if isinstance(answer, list) else "2"
    pq.write_table(pa.Table.from_pylist([row("1+1", first, "a"), row("1+2", answer, "a")]), path)
    with pytest.raises(UserError, match=rf"DATA='.*test\.parquet', {message}"):
        read(path)


def test_a_whole_number_is_its_text(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    pq.write_table(pa.Table.from_pylist([row("1+1", 2, "drpo_verl/arithmetic")]), path)  # type: ignore[arg-type]
    assert read(path)[0].ground_truth == "2"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"k": 0}, "--k=0 must be at least 1"),
        ({"top_p": 0.0}, "--top-p=0.0 must be above 0"),
        ({"temperature": -1.0}, "--temperature=-1.0 must be at least 0"),
        ({"temperature": 0.0}, "--k=16 with --temperature=0 gives the same response each time"),
        ({"max_tokens": 0}, "--max-tokens=0 must be at least 1"),
    ],
)
def test_settings_that_can_not_work(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(model="tiny", data=Path("x"), **setting)


def responses(*scores: float) -> list[Response]:
    return [Response("text", 10 * (index + 1), index == 1, score) for index, score in enumerate(scores)]


def problem(source: str, name: str) -> Problem:
    return Problem(source, [{"role": "user", "content": name}], "1", {})


def test_figures_by_data_source() -> None:
    problems = [problem("aime24", "p"), problem("aime25", "q"), problem("aime24", "r")]
    sampled = [responses(1, 0, 0), responses(0, 0, 0), responses(1, 1, 0.5)]
    results = summarise(problems, sampled, 3, 0)
    first = results["aime24"]
    assert list(results) == ["aime24", "aime25"] and (first["problems"], first["samples"]) == (2, 6)
    assert first["avg@3"]["value"] == pytest.approx((1 / 3 + 2.5 / 3) / 2)
    assert first["pass@1"]["value"] == pytest.approx((1 / 3 + 2 / 3) / 2)  # half a point is not right
    assert first["pass@2"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert first["pass@3"]["value"] == 1.0
    assert first["mean_tokens"] == 20 and first["truncated"] == pytest.approx(1 / 3)
    assert results["aime25"]["avg@3"]["value"] == 0 and results["aime25"]["avg@3"]["method"] == "wilson"

    text = StringIO()
    settings = {**asdict(Settings(model="tiny", data=Path("x"), k=3)), "data": "x"}
    report.show({"model": "tiny", "settings": settings, "results": results}, Console(file=text, width=100))
    shown = text.getvalue()
    assert "aime24" in shown and "avg@3" in shown and "0.583  (" in shown and "Wilson's interval" in shown


def test_responses_are_scored_by_their_source() -> None:
    from rich.progress import Progress

    problems = [
        Problem("drpo_verl/arithmetic", [], "46", {}),
        Problem("aime24", [], "33", {}),
    ]
    sampled = [
        [{"text": "46", "tokens": 3, "truncated": False}, {"text": r"\boxed{45}", "tokens": 3, "truncated": False}],
        [{"text": "33", "tokens": 3, "truncated": False}, {"text": r"\boxed{033}", "tokens": 3, "truncated": True}],
    ]
    scored = _score(problems, sampled, Progress(disable=True))
    assert [[each.score for each in mine] for mine in scored] == [[1, 0], [0, 1]]
    with pytest.raises(UserError, match="can not be scored: the ground truth is empty"):
        _score([Problem("aime24", [], "", {})], [sampled[1]], Progress(disable=True))

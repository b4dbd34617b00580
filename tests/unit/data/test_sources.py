"""The papers' data sets from files of their shape: what is kept, counted, written and refused."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hub import verl_row, write
from rich.console import Console

from drpo_verl.data import table
from drpo_verl.data.rows import INSTRUCTION
from drpo_verl.data.write import default_folder, from_source
from drpo_verl.errors import UserError
from drpo_verl.rewards.reward import compute_score

LINE = 'Put your answer on its own line after "Answer:".'
BOX = r"Give it within \boxed{}."


def make(name: str, copy: Path | None, out: Path, *, accept_changes: bool = False) -> dict[str, Any]:
    return from_source(name, copy, out, accept_changes=accept_changes, console=Console(quiet=True))


def expect(monkeypatch: pytest.MonkeyPatch, name: str, *counts: int) -> None:
    """A small data set of the same shape: only the counts and the hash are others."""
    dataset = table.DATASETS[name]
    parts = tuple(replace(part, expected=(count, count)) for part, count in zip(dataset.parts, counts, strict=True))
    monkeypatch.setattr(table, "DATASETS", {**table.DATASETS, name: replace(dataset, parts=parts, sha256={})})
    monkeypatch.setattr("drpo_verl.data.write.DATASETS", table.DATASETS)


@pytest.fixture
def filtered(tmp_path: Path) -> Path:
    """DPAO_filter's shape: extra_info differs between its files."""
    copy = tmp_path / "copy"
    write(copy / "train" / "a.parquet", [
        verl_row(f"What is 1+1? {LINE}", "2", index="uuid-1"),
        verl_row(f"What  is 1+1?\n{LINE}", "2", index="uuid-2"),
        verl_row(f"What is 1+2? {BOX}", "3", index="uuid-3"),
    ])  # fmt: skip
    write(copy / "train" / "b.parquet", [
        verl_row("What is 1+3?", " 4 ", index=0, split="train"),
        verl_row(f"What is 1+2? {BOX}", "30", index=1, split="train"),
        verl_row("What is 1+4?", "", index=2, split="train"),
        verl_row("What is 1+5?", None, index=3, split="train"),
        verl_row(" ", "7", index=4, split="train"),
    ])  # fmt: skip
    for year, count in (("24", 2), ("25", 1)):
        rows = [verl_row(f"{year}-{number}. {BOX}", f"0{number}") for number in range(count)]
        write(copy / "test" / f"aime{year}.parquet", rows * 32)
    return copy


def test_dapo_math(filtered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(monkeypatch, "dapo_math", 3)
    out = tmp_path / "out"
    manifest = make("dapo_math", filtered, out)
    rows = pq.read_table(out / "train.parquet").to_pylist()
    assert [(row["prompt"][0]["content"], row["reward_model"]["ground_truth"]) for row in rows] == [
        (f"What is 1+1? {LINE}", "2"), (f"What is 1+2? {BOX}", "3"), (f"What is 1+3?{INSTRUCTION}", "4")
    ]  # fmt: skip
    assert rows[2] == {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": f"What is 1+3?{INSTRUCTION}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 2, "split": "train"},
    }
    (part,) = manifest["parts"]
    counts = {name: part[name] for name in ("read", "unusable", "duplicates", "contradicting", "written", "instructed")}
    assert counts == {
        "read": 8, "unusable": 3, "duplicates": 2, "contradicting": 1, "written": 3, "instructed": 1
    }  # fmt: skip
    for row in rows:
        assert compute_score(row["data_source"], rf"\boxed{{{row['reward_model']['ground_truth']}}}", "2") in (0.0, 1.0)

    written = json.loads((out / "manifest.json").read_text())
    assert written == json.loads(json.dumps(manifest))
    assert written["source"]["repository"] == "Jiawei415/DPAO_filter" and written["source"]["from"] == str(filtered)
    for name in ("train/a.parquet", "train/b.parquet"):
        content = (filtered / name).read_bytes()
        assert written["source"]["files"][name] == {
            "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()
        }  # fmt: skip
    output = (out / "train.parquet").read_bytes()
    assert written["outputs"]["train.parquet"] == {
        "rows": 3, "bytes": len(output), "sha256": hashlib.sha256(output).hexdigest()
    }  # fmt: skip
    assert {"drpo-verl", "pyarrow", "huggingface_hub", "python"} <= set(written["versions"])
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "train.parquet"]

    make("dapo_math", filtered, out)
    assert (out / "train.parquet").read_bytes() == output


def test_dapo_math_17k_is_deduplicated_by_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(monkeypatch, "dapo_math_17k", 3)
    rows = [
        verl_row(f"What is 1+1? {LINE}", "2", index="a"),
        verl_row(f"What is 1+1? {LINE}", "2", index="b"),  # the same text twice: the papers' count is by index
        verl_row(f"What is 1+2? {LINE}", "3", index="c"),
    ]
    file = write(tmp_path / "dapo-math-17k.parquet", rows * 100)
    manifest = make("dapo_math_17k", file, tmp_path / "out")
    assert manifest["parts"][0]["read"] == 300 and manifest["outputs"]["train.parquet"]["rows"] == 3
    assert list(manifest["source"]["files"]) == ["data/dapo-math-17k.parquet"]


def test_aime(filtered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(monkeypatch, "aime", 2, 1)
    make("aime", filtered, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    assert [row["data_source"] for row in rows] == ["aime24", "aime24", "aime25"]
    assert [row["extra_info"] for row in rows] == [{"index": index, "split": "test"} for index in range(3)]
    assert compute_score("aime24", r"\boxed{1}", rows[1]["reward_model"]["ground_truth"]) == 1.0

    file = filtered / "test" / "aime25.parquet"
    assert make("aime", file, tmp_path / "one")["outputs"]["test.parquet"]["rows"] == 1


def test_sanity_r1d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(monkeypatch, "sanity_r1d", 2)
    rows = [verl_row(f"{n}? {BOX}", rf"\frac{{{n}}}{{2}}", index=n, split="train") for n in range(2)]
    write(tmp_path / "copy" / "train" / "math_1460.parquet", rows)
    write(tmp_path / "copy" / "test" / "aime_2024.parquet", rows)
    make("sanity_r1d", tmp_path / "copy", tmp_path / "out")
    row = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()[1]
    assert row["data_source"] == "math" and compute_score("math", r"\boxed{0.5}", row["reward_model"]["ground_truth"])


def refuse(message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=message):
        make(*arguments, **options)


def test_what_is_not_the_source_is_refused(filtered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    # What is there are 3 problems: not the papers' 13,000.
    refuse(r"train/\*\.parquet of .*DPAO_filter gives 3 problems, not 12,500 to 13,999.*--accept-changes",
           "dapo_math", filtered, out)  # fmt: skip
    assert not out.exists()
    refuse(r"is not the data/dapo-math-17k\.parquet that is known \(sha256 [0-9a-f]{12}, not 534375d6bb86; .* bytes\)",
           "dapo_math_17k", write(tmp_path / "dapo-math-17k.parquet", [verl_row("1?", "1")]), out)  # fmt: skip
    refuse("--from='/no/such' does not exist", "aime", Path("/no/such"), out)
    (tmp_path / "empty").mkdir()
    refuse(r"has none of the files test/aime24\.parquet, test/aime25\.parquet: give a copy of Jiawei415/DPAO_filter",
           "aime", tmp_path / "empty", out)  # fmt: skip
    refuse("has none of the files", "aime", filtered / "train" / "a.parquet", out)

    # Of another edition nothing but its rows says that it is whole: none is dropped.
    refuse(r"train/b\.parquet, row 4 \(counted from 0\): prompt has no text\..*; row 3 .*is null\..*; row 2 .*is empty",
           "dapo_math", filtered, out, accept_changes=True)  # fmt: skip
    assert not out.exists()
    write(filtered / "train" / "b.parquet", [verl_row("What is 1+3?", " 4 ", index=0, split="train")])
    assert make("dapo_math", filtered, out, accept_changes=True)["changes_accepted"]
    expect(monkeypatch, "dapo_math", 3)
    make("dapo_math", filtered, out)
    before = (out / "train.parquet").read_bytes()
    # One more row than the manifest knows of.
    write(filtered / "train" / "a.parquet", [verl_row(f"{n}?", "1") for n in range(3)])
    refuse(r"a\.parquet has changed since the manifest was written \(sha256 [0-9a-f]{12}, was [0-9a-f]{12}\)",
           "dapo_math", filtered, out)  # fmt: skip
    assert (out / "train.parquet").read_bytes() == before
    expect(monkeypatch, "dapo_math", 4)
    make("dapo_math", filtered, out, accept_changes=True)
    make("dapo_math", filtered, out)  # what was accepted is what is known now
    (out / "manifest.json").write_text("{")
    refuse("manifest.json is damaged: delete it", "dapo_math", filtered, out)


@pytest.mark.parametrize("accept_changes", [False, True])
@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [["1"], ["2"]],
            r"rows 0, 1 \(counted from 0\): reward_model\.ground_truth is list<element: string>, not text",
        ),
        ([1.0, float("nan")], r"row 0 .*ground_truth is double, not text"),
        ([None, None], r"is null\.|gives 0 problems, not 2"),
        (["nan", "2"], r"a missing value written as text|gives 1 problems, not 2"),
    ],
)
def test_answers_of_a_wrong_kind_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[Any], message: str, accept_changes: bool
) -> None:
    expect(monkeypatch, "sanity_r1d", 2)
    file = write(tmp_path / "math_1460.parquet", [verl_row(f"{n}?", answer) for n, answer in enumerate(answers)])
    refuse(message, "sanity_r1d", file, tmp_path / "out", accept_changes=accept_changes)
    assert not (tmp_path / "out").exists()


def test_whole_numbers_and_text_are_answers_and_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(monkeypatch, "sanity_r1d", 2)
    rows = [{**verl_row("", 7 * n), "prompt": f"{n} times 7?"} for n in (1, 2)]  # type: ignore[arg-type]
    make("sanity_r1d", write(tmp_path / "math_1460.parquet", rows), tmp_path / "out")
    first, _ = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert first["reward_model"]["ground_truth"] == "7"
    assert first["prompt"] == [{"role": "user", "content": f"1 times 7?{INSTRUCTION}"}]


def test_a_truncated_copy_is_refused(filtered: Path, tmp_path: Path) -> None:
    file = filtered / "train" / "a.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    refuse(rf"{re.escape(str(file))} is truncated or no parquet file", "dapo_math", filtered, tmp_path / "out")
    pq.write_table(pq.read_table(filtered / "train" / "b.parquet").drop_columns(["reward_model"]), file)
    refuse(r"a\.parquet has no column 'reward_model' \(its columns: data_source, prompt, ability, extra_info\)",
           "dapo_math", filtered, tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_where_it_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRPO_VERL_DATA", str(tmp_path))
    assert default_folder("aime") == tmp_path / "aime"
    monkeypatch.delenv("DRPO_VERL_DATA")
    monkeypatch.setenv("DRPO_VERL_CACHE", str(tmp_path / "cache"))
    assert default_folder("aime") == tmp_path / "cache" / "data" / "aime"


def test_the_table_is_sound() -> None:
    for name, dataset in table.DATASETS.items():
        assert re.fullmatch(r"[\w-]+/[\w.-]+", dataset.repository), name
        assert all(low <= high for low, high in (part.expected for part in dataset.parts))
        assert dataset.revision is None or re.fullmatch("[0-9a-f]{40}", dataset.revision)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in dataset.sha256.values())

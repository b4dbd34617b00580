"""Data files as the check reads them: their columns, what is in their rows, and whether the rows are enough."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from configurations import DENSE, MODEL, findings, findings_after
from datasets import concatenate_datasets, load_dataset

from drpo_verl.configuration.finding import Finding

NO_TRUTH: Any = object()


def row(prompt: Any = "1+1", truth: Any = "2", source: Any = "math_dapo", **others: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    reward_model = {"style": "rule"} | ({} if truth is NO_TRUTH else {"ground_truth": truth})
    return {
        "data_source": source,
        "prompt": messages,
        "reward_model": reward_model,
        "extra_info": {"index": 0},
        **others,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def own(train: Path | str, val: Path | str | None = None) -> list[str]:
    return [f"data.train_files={train}", f"data.val_files={val or train}"]


def of(rule: str, found: list[Finding], level: str = "error") -> list[Finding]:
    return [each for each in found if (each.rule, each.level) == (rule, level)]


def test_columns(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"question": ["a"] * 64}), file)
    (columns, _) = of("data_files", findings(DENSE, *own(f"[{file}]", file)))
    assert "without the columns prompt, data_source, reward_model" in str(columns)
    # verl's reward manager reads data_source, whatever data.reward_fn_key says.
    write(file, [row(kind="a")] * 64)
    found = findings(DENSE, *own(file), "data.reward_fn_key=kind")
    assert not of("data_files", found) and not of("data_values", found)
    pq.write_table(pa.table({name: ["a"] * 64 for name in ("prompt", "kind", "reward_model")}), file)
    assert "without the column data_source" in str(
        of("data_files", findings(DENSE, *own(file), "data.reward_fn_key=kind"))[0]
    )
    file.write_text("no parquet")
    assert "is no parquet file" in str(of("data_files", findings(DENSE, *own(file)))[0])
    whole = write(file, [row()] * 64).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    found = findings(DENSE, *own(file))
    assert "cut short" in str(of("data_files", found)[0]) and not of("data_values", found)


def test_rows_for_a_rollout(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", [row()] * 40)
    (few,) = of("data_rows", findings(DENSE, *own(file)))
    assert "has 40 rows, less than the 64 prompts" in str(few)
    assert few.overrides == ("data.train_batch_size=32 trainer.total_epochs=400",)
    assert not findings_after(DENSE, own(file), few.overrides[0], "data_rows")


def test_rows_for_all_steps(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", [row()] * 700)
    (few,) = of("data_rows", findings(DENSE, *own(file), "trainer.total_epochs=3"))
    assert re.search(
        r"total_training_steps=400 is more than the 30 steps.*700 rows are 10 rollouts of 64 prompts", str(few)
    )
    assert few.overrides == ("trainer.total_epochs=40", "trainer.total_training_steps=30")
    for remedy in few.overrides:
        assert not findings_after(DENSE, [*own(file), "trainer.total_epochs=3"], remedy, "data_rows")
    assert not of("data_rows", findings(DENSE, *own(file), "trainer.total_epochs=40"))
    assert not of(
        "data_rows", findings(DENSE, *own(file), "trainer.total_epochs=1", "trainer.total_training_steps=null")
    )
    # Several files are one; of one that is not here nothing is known.
    several = f"[{file},{file},{file},{file}]"
    assert not of("data_rows", findings(DENSE, *own(several, file), "trainer.total_epochs=10"))
    assert not of("data_rows", findings(DENSE, *own(f"[{file},/nowhere/x.parquet]", file), "trainer.total_epochs=1"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that makes a token of each character."""
    from drpo_verl.models.tiny_model import build_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return folder


def test_prompts_that_are_filtered_out(tmp_path: Path, tokenizer: Path) -> None:
    short, long = [row("1+1")] * 50, [row("1+" * length + "1") for length in range(20, 70)]
    file = write(tmp_path / "train.parquet", [*short, *long])
    base = [*own(file, write(tmp_path / "val.parquet", short)), f"{MODEL}.tokenizer_path={tokenizer}"]
    limit = ["data.max_prompt_length=16", "data.filter_overlong_prompts=true"]
    assert not of("data_rows", findings(DENSE, *base, limit[0], "trainer.total_training_steps=1"))
    (few,) = of("data_rows", findings(DENSE, *base, *limit, "trainer.total_training_steps=1"))
    assert "max_prompt_length=16 leaves 50 of the 100 prompts (data.filter_overlong_prompts=True), less than" in str(
        few
    )
    assert len(few.overrides) == 2  # the smallest limit that leaves a rollout; a smaller rollout
    for remedy in few.overrides:
        after = findings_after(DENSE, [*base, *limit, "trainer.total_training_steps=1"], remedy, "data_rows")
        assert not after, [str(each) for each in after]
    short_by_one = few.overrides[0].split("=")
    shorter = f"{short_by_one[0]}={int(short_by_one[1]) - 1}"
    assert findings_after(DENSE, [*base, *limit, "trainer.total_training_steps=1"], shorter, "data_rows")

    # Enough for a rollout, and too few for the steps.
    steps = ["data.train_batch_size=32", "trainer.total_epochs=2", "trainer.total_training_steps=6"]
    (few,) = of("data_rows", findings(DENSE, *base, *limit, *steps))
    assert re.search(
        r"=6 is more than the 2 steps.*50 rows are 1 rollout of 32 prompts \(at least 50 prompts", str(few)
    )
    # Nothing is known without the tokenizer, and with descriptions of tools in the prompt.
    for unknown in (f"{MODEL}.tokenizer_path=/nowhere", "+data.tool_config_path=tools.yaml"):
        assert not of("data_rows", findings(DENSE, *base, *limit, *steps, unknown))


def test_prompts_that_are_cut(tmp_path: Path, tokenizer: Path) -> None:
    train, val = tmp_path / "train.parquet", tmp_path / "val.parquet"
    base = [*own(write(train, [row()] * 60 + [row("1+" * 20 + "1")] * 4), write(val, [row()] * 4))]
    base += [f"{MODEL}.tokenizer_path={tokenizer}", "data.max_prompt_length=16", "data.filter_overlong_prompts=false"]
    (cut,) = of("prompt_lengths", findings(DENSE, *base), "warning")
    assert re.search(
        r"=16 is less than 4 of the prompts in data\.train_files have tokens.*cuts off their beginning", str(cut)
    )
    for remedy in cut.overrides:
        assert not findings_after(DENSE, base, remedy, "prompt_lengths")
    assert len(cut.overrides) == 2


def test_prompts_that_are_not_validated_on(tmp_path: Path, tokenizer: Path) -> None:
    train = write(tmp_path / "train.parquet", [row()] * 64)
    val = write(tmp_path / "val.parquet", [row()] * 3 + [row("1+" * 20 + "1")])
    base = [*own(train, val), f"{MODEL}.tokenizer_path={tokenizer}", "trainer.total_epochs=400"]
    limit = ["data.max_prompt_length=16", "data.filter_overlong_prompts=true"]
    (left_out,) = of("data_rows", findings(DENSE, *base, *limit), "warning")
    assert "leaves out 1 of the 4 prompts to validate on" in str(left_out) and "of the other 3" in str(left_out)
    assert not findings_after(DENSE, [*base, *limit], left_out.overrides[0], "data_rows")
    write(val, [row("1+" * 20 + "1")])
    (none,) = of("data_rows", findings(DENSE, *base, *limit))
    assert "so that there is none, and verl stops" in str(none)
    pq.write_table(pa.Table.from_pylist([row()]).slice(0, 0), val)
    (none,) = of("data_rows", findings(DENSE, *base, *limit))
    assert "has no problem to validate on" in str(none)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            row(truth=None),
            r"row 5 \(counted from 0\): reward_model\.ground_truth is null\. Write the right answer as text",
        ),
        (row(truth=" "), r"row 5 .*ground_truth is empty"),
        (row(truth="nan"), r"row 5 .*a missing value written as text"),
        (row(prompt=[]), r"row 5 .*: prompt is an empty list\. Write it as a list of messages"),
        (row(prompt=" "), r"row 5 .*: prompt has no text"),
        (row(source=None), r"row 5 .*: data_source is null"),
    ],
)
def test_a_row_that_can_not_be_used_is_named(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    good, file = write(tmp_path / "val.parquet", [row()] * 64), tmp_path / "train.parquet"
    write(file, [*[row()] * 5, bad, *[row()] * 64])
    (finding,) = of("data_values", findings(DENSE, *own(file, good)))
    assert finding.setting == "data.train_files" and re.search(rf"has {file}, {message}", str(finding)), str(finding)
    (finding,) = of("data_values", findings(DENSE, *own(good, file)))
    assert finding.setting == "data.val_files"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (row(truth=["2"]), r"ground_truth is list<element: string>, not text"),
        (row(truth=2.5), r"ground_truth is double, not text"),
        (row(truth=NO_TRUTH), r"ground_truth is missing"),
        ({**row(), "prompt": "1+1"}, r"prompt is text, not a list of messages"),
        (row(truth=2), None),
    ],
)
def test_a_column_of_a_wrong_kind_is_named(tmp_path: Path, kind: dict[str, Any], message: str | None) -> None:
    file = write(tmp_path / "train.parquet", [kind] * 64)
    found = of("data_values", findings(DENSE, *own(file)))
    expected = ["data.train_files", "data.val_files"] if message else []
    assert [each.setting for each in found] == expected
    assert all(re.search(rf"rows 0, 1, 2 and 61 others .*{message}", str(each)) for each in found)


def test_a_custom_reward_takes_any_answer(tmp_path: Path) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text("def compute_score(): ...\n")
    own_reward = f"reward.custom_reward_function.path={reward}"
    file = tmp_path / "train.parquet"
    for any_truth in (["2"], None, 2.5):
        write(file, [row(truth=any_truth)] * 64)
        assert not of("data_values", findings(DENSE, *own(file), own_reward))
    write(file, [row(truth=NO_TRUTH)] * 64)  # which verl's reward manager reads
    assert "ground_truth is missing" in str(of("data_values", findings(DENSE, *own(file), own_reward))[0])
    reward.write_text("class Dataset: ...\n")
    own_dataset = [f"data.custom_cls.path={reward}", "data.custom_cls.name=Dataset"]
    assert not of("data_values", findings(DENSE, *own(file), *own_dataset))


def test_to_a_reward_of_verl_a_number_is_no_text(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", [row(truth=2)] * 64)
    found = of("data_values", findings(DENSE, *own(file), "reward.custom_reward_function.path=null"))
    assert len(found) == 2 and "ground_truth is int64, not text" in str(found[0])
    from verl.utils.reward_score import default_compute_score

    assert default_compute_score("openai/gsm8k", "#### 2", "2") == 1 and not default_compute_score(
        "openai/gsm8k", "#### 2", 2
    )


def test_json_is_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    notes = of("data_files", findings(DENSE, *own(tmp_path / "train.jsonl")), "note")
    assert len(notes) == 2 and "train.jsonl, whose rows are not looked into" in str(notes[0])


@pytest.mark.parametrize(
    ("other", "joined"),
    [
        (row(truth=2), False),
        ({**row(), "reward_model": {"ground_truth": "2", "style": "rule"}}, True),  # fields in another order
        (row(others="x"), True),
        ({**row(), "extra_info": None}, True),
    ],
)
def test_files_that_are_joined(tmp_path: Path, other: dict[str, Any], joined: bool) -> None:
    files = [write(tmp_path / "a.parquet", [row()] * 64), write(tmp_path / "b.parquet", [other] * 64)]
    found = of("data_values", findings(DENSE, *own(f"[{files[0]},{files[1]}]", files[0])))
    assert len(found) == (not joined)
    assert all(
        "a.parquet and b.parquet, whose columns reward_model are of different types" in str(each) for each in found
    )
    # As verl's dataset does it.
    parts = [load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path))["train"] for file in files]
    with contextlib.nullcontext() if joined else pytest.raises(ValueError, match="features can't be aligned"):
        concatenate_datasets(parts)

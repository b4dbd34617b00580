"""Problems made here: disjoint splits, answers that their reward takes, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from drpo_verl.cli import app
from drpo_verl.data.generated import arithmetic, reasoning_gym
from drpo_verl.errors import UserError
from drpo_verl.rewards.reward import compute_score

QUIET = Console(quiet=True)


def test_arithmetic_is_that_of_the_experiments(tmp_path: Path) -> None:
    from drpo_verl.rewards.arithmetic import make_problems, to_verl_rows

    manifest = arithmetic(tmp_path, train=20, test=8, seed=1, style="terse")
    assert pq.read_table(tmp_path / "train.parquet").to_pylist() == to_verl_rows(
        make_problems("train", 20, seed=1), split="train", style="terse"
    )
    assert pq.read_table(tmp_path / "test.parquet").to_pylist() == to_verl_rows(
        make_problems("val", 8, seed=1), split="val", style="terse"
    )
    assert manifest["outputs"]["test.parquet"]["rows"] == 8 and manifest["seed"] == 1
    with pytest.raises(UserError, match="--style='loud' is not one of terse, natural"):
        arithmetic(tmp_path, train=1, test=1, seed=1, style="loud")
    with pytest.raises(UserError, match="--train=0: count must be at least 1"):
        arithmetic(tmp_path, train=0, test=1, seed=1, style="terse")


@pytest.mark.parametrize("task", ["chain_sum", "gcd", "rotate_matrix"])
def test_reasoning_gym(task: str, tmp_path: Path) -> None:
    manifest = reasoning_gym(tmp_path, task=task, train=30, test=10, seed=0, console=QUIET)
    train, test = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("train", "test"))
    assert (len(train), len(test)) == (30, 10) and manifest["task"] == task
    questions = [row["prompt"][0]["content"] for row in train + test]
    assert len(set(questions)) == 40 and all("<answer>" in question for question in questions)
    for row in train[:5]:
        assert row["data_source"] == f"reasoning_gym/{task}"
        answer = row["reward_model"]["ground_truth"]
        for said, worth in ((answer, 1.0), ("nothing of it", 0.0)):
            response = f"Well. <answer>{said}</answer>"
            assert compute_score(row["data_source"], response, answer, row["extra_info"]) == worth
    again = tmp_path / "again"
    reasoning_gym(again, task=task, train=30, test=10, seed=0, console=QUIET)
    assert (again / "train.parquet").read_bytes() == (tmp_path / "train.parquet").read_bytes()


def test_tasks_that_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--task='sums' is not one of reasoning-gym's: .*chain_sum"):
        reasoning_gym(tmp_path, task="sums", train=1, test=1, seed=0, console=QUIET)
    with pytest.raises(UserError, match=r"--task='countdown': .* evaluates text as code.*These do not: .*chain_sum"):
        reasoning_gym(tmp_path, task="countdown", train=1, test=1, seed=0, console=QUIET)
    with pytest.raises(UserError, match="--test=0 must be at least 1"):
        reasoning_gym(tmp_path, task="chain_sum", train=1, test=0, seed=0, console=QUIET)


def test_the_command(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["data", "arithmetic", "--train", "5", "--test", "3", "--out", str(tmp_path)])
    assert run.exit_code == 0 and f"{tmp_path}/test.parquet (3 rows)" in run.output
    assert json.loads((tmp_path / "manifest.json").read_text())["dataset"] == "arithmetic"
    failed = CliRunner().invoke(app, ["data", "arithmetic", "--style", "loud", "--out", str(tmp_path)])
    assert failed.exit_code == 1 and "--style='loud'" in failed.output

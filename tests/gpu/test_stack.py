"""Real runs of the whole stack on one GPU: verl, Ray, vLLM and FSDP2 on one card; and the probe."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stack import start

from drpo_verl.configuration.compose import compose_run
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.preflight import check_run

SHORT = (
    "experiment=gpu_tiny", "trainer.total_training_steps=3", "trainer.val_before_train=false", "trainer.test_freq=-1",
    "trainer.save_freq=-1", "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "prepare.data.n_train=64", "prepare.data.n_val=16",
)  # fmt: skip
PRECISIONS = {
    precision: (f"precision={precision}", "trainer.total_training_steps=2") for precision in ("fp8_rollout", "fp16")
}


def _steps(folder: Path, *overrides: str) -> list[dict[str, float]]:
    return [step.metrics for step in start(folder, *SHORT, *overrides).steps]


@pytest.mark.parametrize("overrides", [(), *PRECISIONS.values()], ids=["bf16", *PRECISIONS])
def test_the_check_has_nothing_against_these_runs(overrides: tuple[str, ...]) -> None:
    findings = check_run(RunConfig(compose_run([*SHORT, *overrides])))
    assert not [str(each) for each in findings if each.level == "error"]


def test_three_steps(tmp_path: Path, device: str) -> None:
    if device == "cpu":
        pytest.skip("tests/e2e makes such runs on a CPU")
    steps = _steps(tmp_path / "run")
    assert len(steps) == 3
    for metrics in steps:
        assert 0 < metrics["critic/score/mean"] < 1
        assert 0 < metrics["mismatch/abs_prob_diff_mean"] < 0.2
        assert math.isfinite(metrics["actor/grad_norm"]) and metrics["actor/grad_norm"] > 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_steps_in_another_precision(tmp_path: Path, device: str, precision: str) -> None:
    if device == "cpu":
        pytest.skip("a GPU's number formats; tests/e2e has what a CPU computes in")
    if precision == "fp8_rollout" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip(f"{torch.cuda.get_device_name()} computes no FP8: an Ada, Hopper or newer card is needed")
    steps = _steps(tmp_path / "run", *PRECISIONS[precision])
    assert len(steps) == 2
    assert all(0 < metrics["inference_mismatch/abs_prob_diff_mean"] < 0.3 for metrics in steps)


def test_the_probe(tmp_path: Path, device: str) -> None:
    if device == "cpu":
        pytest.skip("tests/e2e/test_probe.py runs it on a CPU")
    command = [
        sys.executable, "-m", "drpo_verl.cli", "probe", "tiny", "--train-dtype", "float32", "--max-tokens", "8",
        "--out", str(tmp_path),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    result = json.loads((tmp_path / "probe.json").read_text())
    assert result["device"] == "cuda" and result["tokens"] >= 128
    assert 1e-5 < result["mismatch"]["abs_prob_diff_mean"] < 0.05

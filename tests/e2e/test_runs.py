"""What real runs on the CPU must show."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from stack import ONE_UPDATE, SHORT, Run, processes_of, start

from drpo_verl.launch.console import EXIT_STALLED

EXACT = {
    "trust_region/weight_mean",
    "trust_region/weight_min",
    "trust_region/diverging_frac",
    "trust_region/outside_frac",
    "trust_region/outside_frac_positive_advantage",
    "trust_region/outside_frac_negative_advantage",
    "trust_region/corrective_frac",
    "mismatch/abs_prob_diff_mean",
    "mismatch/abs_prob_diff_max",
    "mismatch/ratio_max",
    "mismatch/kl",
    "mismatch/low_prob_frac",
}


def test_three_steps_with_reward_and_every_metric(exact_run: Run, two_rank_bf16_run: Run) -> None:
    for run in (exact_run, two_rank_bf16_run):
        assert [step.step for step in run.steps] == [1, 2, 3]
        for step in run.steps:
            assert set(step.metrics) >= EXACT, EXACT - set(step.metrics)
            assert all(math.isfinite(step.metrics[metric]) for metric in EXACT)
            assert 0.0 < step.metrics["critic/score/mean"] < 1.0
            assert step.metrics["actor/grad_norm"] > 0.0


def test_fp32_on_both_sides_has_no_mismatch_and_the_weights_reach_vllm(exact_run: Run) -> None:
    # One update a rollout: pi is compared with mu before it moves. Each update moves the probabilities by far more than
    # 1e-4 (see the next test), so that pi and mu agree in steps 2 and 3 only if vLLM samples with the new weights.
    for step in exact_run.steps:
        assert step.metrics["mismatch/abs_prob_diff_max"] < 1e-4
        assert step.metrics["mismatch/ratio_max"] == pytest.approx(1.0, abs=1e-3)


def test_an_update_moves_the_policy(two_rank_bf16_run: Run) -> None:
    # Two updates a rollout: in the second, pi has moved away from mu by the first, further than bf16 takes it.
    for step in two_rank_bf16_run.steps:
        mismatch, drift = (
            step.metrics[f"{series}/abs_prob_diff_mean"] for series in ("inference_mismatch", "policy_drift")
        )
        assert drift > 2 * mismatch


def test_a_bf16_rollout_has_one(two_rank_bf16_run: Run) -> None:
    assert all(step.metrics["inference_mismatch/abs_prob_diff_mean"] > 1e-4 for step in two_rank_bf16_run.steps)


def test_a_mismatch_and_an_entropy_beyond_their_thresholds_are_announced(two_rank_bf16_run: Run) -> None:
    log = (two_rank_bf16_run.folder / "train.log").read_text()
    for step, metric in ((2, "inference_mismatch/abs_prob_diff_mean"), (1, "mismatch/behaviour_log_prob_mean")):
        announced = f"warning: step {step}: {metric} is "
        assert two_rank_bf16_run.output.count(announced) == 1 and announced in log


def test_top_k_goes_with_its_tokens(two_rank_bf16_run: Run) -> None:
    # Of other tokens, or with rows out of step, it would be near 1; of fewer than the binary partition, below that one.
    for step in two_rank_bf16_run.steps:
        binary, partition = (
            step.metrics[f"mismatch/{name}_mean"] for name in ("abs_prob_diff", "partition_divergence")
        )
        assert 0.99 * binary - 1e-3 <= partition < 0.15
        assert step.metrics["mismatch/partition_divergence_max"] <= 1.0


def test_mismatch_is_told_apart_from_drift(exact_run: Run, two_rank_bf16_run: Run) -> None:
    for step in two_rank_bf16_run.steps:
        mismatch, drift = (
            step.metrics[f"{prefix}/abs_prob_diff_mean"] for prefix in ("inference_mismatch", "policy_drift")
        )
        assert mismatch < step.metrics["mismatch/abs_prob_diff_mean"] < drift
        assert (
            step.metrics["inference_mismatch/abs_prob_diff_p50"] <= step.metrics["inference_mismatch/abs_prob_diff_p99"]
        )
    for step in exact_run.steps:  # one update a rollout: there is no later mini-batch
        assert not any(name.startswith("policy_drift/") for name in step.metrics)
        assert step.metrics["inference_mismatch/abs_prob_diff_p99"] < 1e-4
        assert step.metrics["inference_mismatch/ess"] > 0.999


def test_nothing_listens_beyond_loopback(exact_run: Run, two_rank_bf16_run: Run) -> None:
    listening = exact_run.listening | two_rank_bf16_run.listening
    assert len(listening) > 5, "Ray's sockets were not seen"
    assert not [(ip, name) for ip, name in listening if ip not in ("127.0.0.1", "::1")]


def test_a_run_leaves_what_it_says(exact_run: Run) -> None:
    worst = [json.loads(line) for line in (exact_run.folder / "worst_tokens.jsonl").read_text().splitlines()]
    assert [line["step"] for line in worst] == [1, 2, 3] and all(line["context"] for line in worst)
    for name in ("metrics.jsonl", "train.log", "run.png", "summary.json", "checkpoints/global_step_3/actor"):
        assert (exact_run.folder / name).exists(), name
    summary = json.loads((exact_run.folder / "summary.json").read_text())
    (validation,) = summary["validation"]
    low, high = validation["interval_95"]
    assert low <= validation["accuracy"] <= high and low < high and validation["problems"] == 16
    for line in ("step   3/3", "reward", "held-out accuracy after step", "metrics.jsonl", "run.png", "checkpoint"):
        assert line in exact_run.output
    assert (exact_run.folder / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_hangs_is_ended_with_an_error(tmp_path: Path) -> None:
    run = start(tmp_path / "stalled", *SHORT, ONE_UPDATE, "run.stall_seconds=3", expect_success=False)
    assert run.returncode == EXIT_STALLED
    assert "run.stall_seconds=3" in run.output and "train.log" in run.output
    deadline = time.monotonic() + 30
    while (left := processes_of(run.folder)) and time.monotonic() < deadline:
        time.sleep(1)
    assert not left, left

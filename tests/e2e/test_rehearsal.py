"""Experiments of both papers, rehearsed for two real steps on the CPU: DRPO, Top-K, and an asynchronous trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
from stack import Run, start

from drpo_verl.losses.diagnostics import ABS_DIFF_EDGES

STALENESS = "training/off_policy/trajectory_staleness"


def _rehearse(folder: Path, experiment: str, *overrides: str) -> Run:
    run = start(folder, f"experiment={experiment}", "rehearsal=cpu", *overrides)
    assert [step.step for step in run.steps] == [1, 2]
    return run


def test_drpo_with_four_updates_a_rollout_and_a_recomputed_anchor(tmp_path: Path) -> None:
    run = _rehearse(tmp_path / "drpo", "drpo/qwen3_4b", "anchor=recomputed")
    for step in run.steps:
        # bf16 in vLLM, and three of four updates after the first: both are seen, and apart.
        assert 0 < step.metrics["inference_mismatch/abs_prob_diff_mean"] < 0.05
        assert step.metrics["policy_drift/abs_prob_diff_mean"] > step.metrics["inference_mismatch/abs_prob_diff_mean"]
        assert 1 - 1 / 12.5 <= step.metrics["trust_region/weight_min"] < 1
        # What the updates have moved, over all tokens, those of the first mini-batch with 0 included; and no engine.
        drift = step.metrics["trust_region/anchor_abs_prob_diff_mean"]
        assert 0 < drift < step.metrics["policy_drift/abs_prob_diff_mean"]
        assert step.metrics["policy_drift/anchor_abs_prob_diff_mean"] == pytest.approx(drift * 4 / 3, rel=0.2)


def test_dppo_with_top_k_and_experts(tmp_path: Path) -> None:
    run = _rehearse(
        tmp_path / "topk", "dppo/qwen3_30b_a3b_base", "method=dppo_topk_tv", "model=tiny_moe",
        "+prepare.policy.recipe.target_accuracy=0.05",
    )  # fmt: skip
    for step in run.steps:
        # Of experts that a weight sync has left unpacked, it would be 0.1 and more.
        assert 0 < step.metrics["inference_mismatch/abs_prob_diff_mean"] < 0.02
        # Of the same tokens as the sampled ones, it is never below the binary partition's.
        partition, binary = (
            step.metrics[f"mismatch/{name}_mean"] for name in ("partition_divergence", "abs_prob_diff")
        )
        assert 0.99 * binary - 1e-3 <= partition < 0.3


@pytest.fixture(scope="module")
def asynchronous_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Samplers of their own, which get new weights after four updates and are a step ahead; with Top-K."""
    overrides = ["staleness=separate_async", "method=dppo_topk_tv"]
    return _rehearse(tmp_path_factory.mktemp("async"), "dppo/qwen3_8b", *overrides)


def test_samples_of_an_asynchronous_trainer_have_top_k(asynchronous_run: Run) -> None:
    for step in asynchronous_run.steps:
        partition, binary = (
            step.metrics[f"mismatch/{name}_mean"] for name in ("partition_divergence", "abs_prob_diff")
        )
        assert 0 < 0.99 * binary - 1e-3 <= partition < 0.5


def test_samples_of_an_asynchronous_trainer_are_stale(asynchronous_run: Run) -> None:
    last = asynchronous_run.steps[-1].metrics
    assert last[f"{STALENESS}/max"] >= 1
    assert last[f"{STALENESS}/min"] <= last[f"{STALENESS}/mean"] <= last[f"{STALENESS}/max"]


def test_an_asynchronous_trainer_tells_mismatch_and_drift(asynchronous_run: Run) -> None:
    # Each of its four updates between two weight syncs is a call of its own, of which the last one's metrics count.
    for step in asynchronous_run.steps:
        mismatch, both, drift = (
            step.metrics[f"{prefix}/abs_prob_diff_max"] for prefix in ("inference_mismatch", "mismatch", "policy_drift")
        )
        assert 0 < min(mismatch, drift) <= both == max(mismatch, drift) <= 1
        # An average over the updates would be between the edges of bins.
        assert any(step.metrics["policy_drift/abs_prob_diff_p99"] == pytest.approx(edge) for edge in ABS_DIFF_EDGES)
    # After a weight sync the count begins anew.
    first, second = (step.metrics["inference_mismatch/abs_prob_diff_mean"] for step in asynchronous_run.steps)
    assert first != second


def test_nothing_is_left_in_shared_memory(asynchronous_run: Run) -> None:
    assert not list(Path("/dev/shm").glob("drpo_verl_weights_*"))

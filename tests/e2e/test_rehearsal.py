"""Experiments of both papers, rehearsed for two real steps on the CPU: DRPO, and Top-K; test_jobs.py has another."""

from __future__ import annotations

from pathlib import Path

import pytest
from stack import Run, start


def _rehearse(folder: Path, experiment: str, *overrides: str) -> Run:
    run = start(folder, f"experiment={experiment}", "rehearsal=cpu", *overrides)
    assert [step.step for step in run.steps] == [1, 2]
    return run


def test_drpo_with_four_updates_a_rollout_and_a_recomputed_anchor(tmp_path: Path) -> None:
    # At this seed both steps have rewards that differ; without any difference nothing is attenuated.
    run = _rehearse(tmp_path / "drpo", "drpo/qwen3_4b", "anchor=recomputed", "run.seed=1")
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

"""Real runs in the demo's precision, which is a quantised rollout, and in fp16 with an LM head in fp32."""

from __future__ import annotations

import re
from pathlib import Path

from stack import ONE_UPDATE, SHORT, start

MISMATCH = "inference_mismatch/abs_prob_diff_mean"


def test_the_demo_has_a_mismatch_in_every_step_and_drift_on_top_of_it(tmp_path: Path) -> None:
    # The demo's own precision, weights through FP8 and back, and two updates a rollout.
    run = start(tmp_path / "fp8", *SHORT, "actor_rollout_ref.actor.ppo_mini_batch_size=4", "trainer.save_freq=-1")
    assert len(run.steps) == 3
    # The first weights of vLLM are random: what it samples from comes with a weight sync, in the first step as well.
    # fp32 on both sides has 1e-7, so that a sync without rounding would be seen.
    for step in run.steps:
        assert 3e-4 < step.metrics[MISMATCH] < 0.03
        assert step.metrics[MISMATCH] < step.metrics["policy_drift/abs_prob_diff_mean"]
    number = r"0\.\d+"
    before, after = (rf"{number} before any update \(mismatch\)", rf"{number} after updates \(mismatch and drift\)")
    assert re.search(f"differ by {before} and by {after}", run.output), run.output


def test_fp16_with_an_fp32_head_is_close_and_its_loss_is_scaled(tmp_path: Path) -> None:
    run = start(tmp_path / "fp16", *SHORT, ONE_UPDATE, "precision=fp16", "head=fp32", "trainer.save_freq=-1")
    assert len(run.steps) == 3
    for step in run.steps:
        assert 1e-6 < step.metrics[MISMATCH] < 2e-3
        assert step.metrics["actor/loss_scale"] == 65536 and step.metrics["actor/skipped_update_frac"] == 0
        assert step.metrics["actor/grad_norm"] > 0

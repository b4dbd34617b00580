"""Real runs in fp16 with an LM head in fp32, and with a quantised rollout, through verl's own configuration of vLLM."""

from __future__ import annotations

from pathlib import Path

from stack import ONE_UPDATE, SHORT, start

MISMATCH = "inference_mismatch/abs_prob_diff_mean"


def test_a_rollout_with_quantised_weights_is_off_in_every_step(tmp_path: Path) -> None:
    run = start(tmp_path / "int4", *SHORT, ONE_UPDATE, "precision=cpu_int4_weights", "trainer.save_freq=-1")
    assert len(run.steps) == 3
    # The first weights of vLLM are random: what it samples from comes with a weight sync, in the first step as well.
    # fp32 on both sides has 1e-7, so that a sync without rounding would be seen.
    for step in run.steps:
        assert 3e-3 < step.metrics[MISMATCH] < 0.2


def test_fp16_with_an_fp32_head_is_close_and_its_loss_is_scaled(tmp_path: Path) -> None:
    run = start(tmp_path / "fp16", *SHORT, ONE_UPDATE, "precision=fp16", "head=fp32", "trainer.save_freq=-1")
    assert len(run.steps) == 3
    for step in run.steps:
        assert 1e-6 < step.metrics[MISMATCH] < 2e-3
        assert step.metrics["actor/loss_scale"] == 65536 and step.metrics["actor/skipped_update_frac"] == 0
        assert step.metrics["actor/grad_norm"] > 0

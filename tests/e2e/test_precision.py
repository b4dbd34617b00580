"""A real run in fp16 with an LM head in fp32, through verl's own configuration of vLLM."""

from __future__ import annotations

from pathlib import Path

from stack import ONE_UPDATE, SHORT, start

MISMATCH = "inference_mismatch/abs_prob_diff_mean"


def test_fp16_with_an_fp32_head_is_close_and_its_loss_is_scaled(tmp_path: Path) -> None:
    run = start(tmp_path / "fp16", *SHORT, ONE_UPDATE, "precision=fp16", "head=fp32", "trainer.save_freq=-1")
    assert len(run.steps) == 3
    for step in run.steps:
        assert 1e-6 < step.metrics[MISMATCH] < 2e-3
        assert step.metrics["actor/loss_scale"] == 65536 and step.metrics["actor/skipped_update_frac"] == 0
        assert step.metrics["actor/grad_norm"] > 0

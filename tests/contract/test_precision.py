"""verl's FSDP2 engine in fp16, whose loss is scaled, with its LM head in fp32, and with weights that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranks import Group, run_ranks

SCRIPT = Path(__file__).with_name("precision_rank.py")
FSDP, LOSS_SCALE = "actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.actor.loss_scale_factor"
MICRO_BATCH = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"
LONG = f"{LOSS_SCALE}=30000"
"""Responses of 30,000 tokens: without a scale, fp16 has little left of such gradients."""
CASES = {
    "fp32": [LONG],
    "fp16": ["precision=fp16", LONG],
    "fp16_head": ["precision=fp16", "head=fp32", LONG],
    "bf16_head": [f"{FSDP}.mixed_precision.param_dtype=bf16", "head=fp32"],
    "overflow": ["precision=fp16", f"{LOSS_SCALE}=1e-6"],
}


@pytest.fixture(scope="module")
def ranks(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came of each case on each of two ranks."""
    group = Group(str(tmp_path_factory.mktemp("precision")), 2, str(random_policy), CASES, [MICRO_BATCH])
    (found,) = run_ranks(SCRIPT, [group])
    return found


def test_scaled_gradients_of_fp16_are_those_of_fp32(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for case in ("fp16", "fp16_head"):
            assert rank[case]["grad_norm"] == pytest.approx(rank["fp32"]["grad_norm"], rel=5e-3)
            assert rank[case]["loss_scale"] == [65536.0] and rank[case]["skipped_update_frac"] == [0.0]
            assert rank[case]["moved"]
        assert "loss_scale" not in rank["fp32"]


def test_an_update_that_overflows_is_left_out_and_counted(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["overflow"]["skipped_update_frac"] == [1.0]
        assert rank["overflow"]["loss_scale"] == [65536.0 / 4]  # two updates, and each has halved it
        assert not rank["overflow"]["moved"]


def test_the_head_is_in_fp32_where_it_is_asked_for(ranks: list[dict[str, Any]]) -> None:
    dtypes = {case: ranks[0][case]["logits"] for case in CASES}
    wanted = {"fp32": "float32", "fp16": "float16", "fp16_head": "float32", "bf16_head": "float32"}
    assert dtypes == {case: f"torch.{wanted.get(case, 'float16')}" for case in CASES}


def test_weights_that_are_kept_for_pi_old_do_not_follow_the_updates(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert all(rank[case]["brought_back"] for case in CASES)

"""Top-K through verl's real Megatron engine, on two ranks over gloo: what whole logits give, however they are split.

And the same in fp16, with Megatron's optimiser and its loss scale.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from overlay import overlay
from ranks import Group, run_ranks

LOSS = "actor_rollout_ref.actor.policy_loss"
DELTAS = {"dppo_topk_tv": 0.55, "dppo_topk_kl": 1.5}  # between those of the tokens


def _case(
    experiment: str, method: str, *settings: str, tensor: int = 2, context: int = 1, spoilt: bool = False
) -> dict[str, Any]:
    sizes = {"tensor_model_parallel_size": tensor, "context_parallel_size": context}
    return {
        "experiment": experiment,
        "method": method,
        "settings": [
            f"{LOSS}.delta={DELTAS[method]}", f"{LOSS}.ratio_cap=5",
            *(f"actor_rollout_ref.actor.megatron.{name}={size}" for name, size in sizes.items()), *settings,
        ],
        "spoilt": spoilt,
    }  # fmt: skip


BF16, FP8 = "dppo/verl_script", "drpo/qwen3_30b_a3b_fp8_e2e"
PADDED = "actor_rollout_ref.model.use_remove_padding=false"
TWO_RANKS = {
    "tensor": _case(BF16, "dppo_topk_tv"),
    "tensor, kl": _case(BF16, "dppo_topk_kl"),
    "tensor, fp8": _case(FP8, "dppo_topk_tv"),
    "tensor, padded": _case(BF16, "dppo_topk_tv", PADDED),
    "tensor, padded to its own longest": _case(
        BF16, "dppo_topk_tv", PADDED, "actor_rollout_ref.actor.megatron.pad_bshd_to_minibatch_max=false"
    ),
    "context": _case(BF16, "dppo_topk_tv", tensor=1, context=2),
    "context, fp8": _case(FP8, "dppo_topk_tv", tensor=1, context=2),
    "context, padded": _case(BF16, "dppo_topk_tv", PADDED, tensor=1, context=2),
}
SPOILT = {
    "tensor, fp8, spoilt": _case(FP8, "dppo_topk_tv", spoilt=True),
    "context, spoilt": _case(BF16, "dppo_topk_kl", tensor=1, context=2, spoilt=True),
}
# With torch's Adam and Megatron's fp32 weights. verl's choice is Transformer Engine's Adam, which needs CUDA.
IN_FP16 = (
    "actor_rollout_ref.actor.megatron.dtype=float16",
    "actor_rollout_ref.actor.megatron.use_distributed_optimizer=false",
    "actor_rollout_ref.actor.optim.override_optimizer_config={use_precision_aware_optimizer: false}",
    "actor_rollout_ref.actor.optim.lr=0.01",
)
FP16 = {
    "fp16, tensor": _case(BF16, "dppo_topk_tv", *IN_FP16),
    # A loss that is a million times larger.
    "fp16, overflow": _case(
        BF16, "dppo_topk_tv", *IN_FP16, "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
        "actor_rollout_ref.actor.loss_scale_factor=1e-6",
    ),
}  # fmt: skip
ONE_RANK = {name: _case(BF16, f"dppo_topk_{name}", tensor=1) for name in ("tv", "kl")}
FP16_ALONE = {"fp16, one rank": _case(BF16, "dppo_topk_tv", *IN_FP16, tensor=1)}


@pytest.fixture(scope="module")
def groups(random_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What came of the cases of one rank, and of each of two ranks."""

    def group(name: str, ranks: int, cases: dict[str, dict[str, Any]]) -> Group:
        return Group(str(tmp_path_factory.mktemp(name)), ranks, str(random_policy), cases)

    one, two = group("megatron_one", 1, ONE_RANK | FP16_ALONE), group("megatron_two", 2, TWO_RANKS | SPOILT | FP16)
    return run_ranks(Path(__file__).with_name("megatron_rank.py"), [one, two], overlay("megatron"))


@pytest.fixture
def one_rank(groups: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return groups[0][0]


@pytest.fixture
def two_ranks(groups: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return groups[1]


@pytest.mark.parametrize("case", TWO_RANKS)
def test_every_sample_has_the_divergences_and_log_probabilities_of_whole_logits(
    one_rank: dict[str, Any], two_ranks: list[dict[str, Any]], case: str
) -> None:
    kind = "kl" if "kl" in case else "tv"
    expected = one_rank[kind]["expected"]
    assert len(expected) == 11 and len({len(each["tv"]) for each in expected.values()}) > 3
    for rank in two_ranks:
        found = rank[case]["samples"]
        assert found.keys() == expected.keys()
        for tokens, each in expected.items():
            assert found[tokens]["drpo_verl_partition_divergence"] == pytest.approx(each[kind], rel=1e-4, abs=1e-6)
            assert found[tokens]["log_probs"] == pytest.approx(each["log_probs"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", TWO_RANKS)
def test_pi_old_of_the_second_mini_batch_is_on_every_rank_that_calls_the_loss(
    one_rank: dict[str, Any], two_ranks: list[dict[str, Any]], case: str
) -> None:
    expected = one_rank["tv"]["expected"]
    for rank in two_ranks:
        anchors = rank[case]["anchors"]
        assert len(anchors) == 10
        for i, (tokens, log_pi_old) in enumerate(anchors.items()):
            if i < 5:  # of the first mini-batch, in which the training pass has it
                assert all(math.isnan(each) for each in log_pi_old)
            else:
                assert log_pi_old == pytest.approx(expected[tokens]["log_probs"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", TWO_RANKS)
def test_the_metrics_of_a_step_do_not_depend_on_the_split(
    one_rank: dict[str, Any], two_ranks: list[dict[str, Any]], case: str
) -> None:
    one = one_rank["kl" if "kl" in case else "tv"]["metrics"]
    ours = {name: value for name, value in one.items() if name.startswith(("trust_region/", "mismatch/"))}
    metrics = two_ranks[0][case]["metrics"]
    assert {name: metrics[name][0] for name in ours} == pytest.approx(
        {name: value[0] for name, value in ours.items()}, rel=1e-4, abs=1e-6
    )
    assert 0 < ours["trust_region/outside_frac"][0] < ours["trust_region/diverging_frac"][0] < 1
    assert two_ranks[1][case]["metrics"] == {}, "the second rank of a replica has nothing to report"


def test_the_worst_token_of_a_step_is_written_once(
    two_ranks: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = (tmp_path_factory.getbasetemp() / "megatron_two0" / "worst_tokens.jsonl").read_text().splitlines()
    for case, line in zip([*TWO_RANKS, *FP16], lines, strict=True):
        (largest,) = two_ranks[0][case]["metrics"]["mismatch/abs_prob_diff_max"]
        assert json.loads(line)["abs_prob_diff"] == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("case", SPOILT)
def test_a_row_of_another_token_ends_the_run_on_every_rank(two_ranks: list[dict[str, Any]], case: str) -> None:
    for rank in two_ranks:
        assert "or those of other tokens" in rank[case]["error"]


@pytest.mark.parametrize("case", [*FP16, *FP16_ALONE])
def test_fp16_is_close_to_fp32_and_its_scaled_gradients_too(
    one_rank: dict[str, Any], two_ranks: list[dict[str, Any]], case: str
) -> None:
    expected = one_rank["tv"]
    found = (one_rank if case in FP16_ALONE else two_ranks[0])[case]
    for tokens, each in expected["expected"].items():
        for name, wanted in (("drpo_verl_partition_divergence", "tv"), ("log_probs", "log_probs")):
            assert found["samples"][tokens][name] == pytest.approx(each[wanted], rel=2e-2, abs=2e-3)
            assert found["samples"][tokens][name] != each[wanted]  # another arithmetic
    if "overflow" not in case:
        assert found["metrics"]["grad_norm"] == pytest.approx(expected["metrics"]["grad_norm"], rel=1e-2)
        assert found["metrics"]["loss_scale"] == [32768.0] and found["metrics"]["skipped_update_frac"] == [0.0]
        assert found["moved"]


def test_an_update_of_megatron_that_overflows_is_left_out_and_counted(two_ranks: list[dict[str, Any]]) -> None:
    for rank in two_ranks:
        assert not rank["fp16, overflow"]["moved"]
    metrics = two_ranks[0]["fp16, overflow"]["metrics"]
    assert metrics["skipped_update_frac"] == [1.0]
    assert metrics["loss_scale"] == [32768.0]  # Megatron halves it at the second overflow in a row

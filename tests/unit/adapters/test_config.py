"""Every wrong setting of the policy loss is refused with the setting's name, its value and the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from verl.workers.config import ActorConfig

from drpo_verl.adapters.config import TrustRegionLossConfig, verl_region
from drpo_verl.adapters.sequence_mask import PRESETS
from drpo_verl.losses import OBJECTIVES, PENALTIES, PrefixBudget, SequenceMask, TrustRegion

MASKED: dict[str, Any] = {"loss_mode": "drpo", "delta": 0.2}
# What +method= sets for the methods that need more than delta.
ADAPTIVE: dict[str, Any] = {
    "delta": 0.2, "target_outside": 0.1, "adaptation_gain": 0.1, "max_delta_step": 1.2, "delta_min": 0.01,
    "delta_max": 12.5,
}  # fmt: skip
PREFIX_METHODS = [name for name, row in OBJECTIVES.items() if row.scope is not None and row.scope.needs_budget]
MORE: dict[str, dict[str, Any]] = {
    "mask_drpo": {"region_delta": 0.15},
    "minirl": {"anchor": "recomputed"},
    "drpo_decoupled": {"anchor": "recomputed"},
    "dppo_topk_tv": {"top_k": 20},
    "dppo_topk_kl": {"top_k": 20},
    "drpo_topk": {"top_k": 20},
    "drpo_adaptive": ADAPTIVE,
    "pdm": {"top_k": 20, "tail": "aggregated"},
    **{mode: {"w_min": 0.8, "delta_b": 0.02} for mode in PREFIX_METHODS},
}
WITH_THRESHOLD = [name for name, row in OBJECTIVES.items() if row.enforcement.needs_threshold and row.verl_loss is None]


@pytest.mark.parametrize("loss_mode", WITH_THRESHOLD)
def test_thresholds_reach_the_objective(loss_mode: str) -> None:
    more = MORE.get(loss_mode, {})
    region = TrustRegionLossConfig(**{"loss_mode": loss_mode, **more, "delta": 0.2, "ratio_cap": 3}).region()
    assert (region.delta_low, region.delta_high, region.ratio_cap) == (0.2, 0.2, 3)
    if loss_mode in ("drpo_adaptive", *PREFIX_METHODS):
        return
    both = TrustRegionLossConfig(loss_mode=loss_mode, delta_low=0.1, delta_high=0.3, **more).region()
    assert (both.delta_low, both.delta_high, both.ratio_cap) == (0.1, 0.3, None)
    one = TrustRegionLossConfig(loss_mode=loss_mode, delta=0.2, delta_high=0.3, **more).region()
    assert (one.delta_low, one.delta_high) == (0.2, 0.3)


def test_the_other_settings_reach_the_objective() -> None:
    masked = TrustRegionLossConfig(
        loss_mode="mask_drpo", delta=12.5, region_delta=0.15, restrict_to="negative"
    ).region()
    assert masked.region_delta == 0.15 and masked.restrict_to == "negative"
    assert not TrustRegionLossConfig(loss_mode="drpo", delta=1.0, advantage_weighted=False).region().advantage_weighted
    for name, geometry in PENALTIES.items():
        assert TrustRegionLossConfig(loss_mode="drpo", delta=1.0, penalty=name).objective().geometry is geometry
    assert TrustRegionLossConfig(loss_mode="pg_tis", ratio_cap=2.0).region().ratio_cap == 2.0


def test_a_prefix_budget_reaches_the_objective() -> None:
    settings = {"loss_mode": "cppo", "delta": 0.15, "w_min": 0.8, "delta_b": 0.02}
    assert TrustRegionLossConfig(**settings).region().prefix_budget == PrefixBudget(0.8, 0.02, None)
    calibrated = TrustRegionLossConfig(**settings, delta_b_quantile=0.9).region().prefix_budget
    assert calibrated == PrefixBudget(0.8, 0.02, 0.9)


def test_a_sequence_mask_is_a_recipe_or_bounds() -> None:
    def mask(**settings: Any) -> SequenceMask | None:
        unset = dict.fromkeys(("preset", "metric", "lower", "upper", "veto"))
        return TrustRegionLossConfig(**MASKED, sequence_mask={**unset, **settings}).mask_of_sequences()

    assert mask() is None and TrustRegionLossConfig(**MASKED).mask_of_sequences() is None
    assert mask(preset="skyrl") == SequenceMask("geometric", 0.99, 1.01)
    assert mask(preset="slime", veto=1e-5) == SequenceMask("geometric", 0.9999, 1.0001, veto=1e-5)
    assert mask(metric="product", upper=2) == SequenceMask("product", None, 2)
    assert mask(veto=1e-4) == SequenceMask(veto=1e-4)
    for name in PRESETS:
        assert mask(preset=name) == PRESETS[name]


def test_a_controller_replaces_delta() -> None:
    settings = TrustRegionLossConfig(loss_mode="drpo_adaptive", **ADAPTIVE)
    controller = settings.controller()
    assert controller is not None and (controller.delta, controller.target) == (0.2, 0.1)
    assert settings.region(delta=0.05).delta_high == 0.05
    assert TrustRegionLossConfig(loss_mode="drpo", delta=0.2).controller() is None


def test_the_baselines_take_the_thresholds_of_verl() -> None:
    assert TrustRegionLossConfig(loss_mode="grpo", bypass_mode=False).objective().verl_loss == "vanilla"
    actor = ActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_high=0.28)
    assert verl_region(actor) == TrustRegion(0.2, 0.28, dual_clip=3.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_mode": "drpo"}, r"policy_loss\.delta is not set.*\+method=drpo"),
        ({"loss_mode": "drpo", "delta": 0}, r"policy_loss\.delta=0 must be a number above 0"),
        ({"loss_mode": "drpo", "delta": -0.5}, r"policy_loss\.delta=-0\.5 must be"),
        ({"loss_mode": "drpo", "delta": float("nan")}, r"policy_loss\.delta=nan must be"),
        ({"loss_mode": "drpo", "delta": float("inf")}, r"policy_loss\.delta=inf must be"),
        ({"loss_mode": "drpo", "delta": "0.5x"}, r"policy_loss\.delta='0\.5x' must be"),
        ({"loss_mode": "drpo", "delta": True}, r"policy_loss\.delta=True must be"),
        ({"loss_mode": "drpo", "delta_low": 0.1}, r"policy_loss\.delta is not set"),
        ({"loss_mode": "drpo", "delta": 1, "delta_low": 0.1, "delta_high": 0.2}, r"delta=1 has no effect beside"),
        ({"loss_mode": "drpo_adaptive", **ADAPTIVE, "penalty": "tv"}, r"penalty='tv' knows no distance"),
        ({"loss_mode": "drpo", "delta": 1, "penalty": "l1"}, r"penalty='l1' is not known.*l2, chi2"),
        ({"loss_mode": "pdm", "delta": 1, "top_k": 20}, r"tail says nothing about.*aggregated, uniform"),
        ({"loss_mode": "pdm", "delta": 1, "top_k": 20, "tail": "flat"}, r"tail='flat' says nothing about"),
        ({"loss_mode": "drpo", "delta": 1, "tail": "uniform"}, r"tail='uniform' has no effect"),
        ({"loss_mode": "drpo", "delta": 1, "w_min": 0.8}, r"w_min=0\.8 has no effect"),
        ({"loss_mode": "cppo", "delta": 1, "w_min": 0.8}, r"delta_b is not set"),
        ({"loss_mode": "cppo", "delta": 1, "w_min": 1.2, "delta_b": 0.02}, r"w_min=1\.2 is the weight of the last"),
        ({"loss_mode": "cppo", "delta": 1, "w_min": 0.8, "delta_b": 0}, r"delta_b=0 must be a number above 0"),
        ({"loss_mode": "cppo", "delta": 1, "w_min": 0.8, "delta_b": 0.02, "delta_b_quantile": 1.0}, r"Set it below 1"),
        ({"loss_mode": "cppo", "delta_low": 1, "w_min": 0.8, "delta_b": 0.02}, r"delta_low=1 has no effect"),
        ({"loss_mode": "drpo_prefix", "delta": 1, "w_min": 0.8, "delta_b": 0.02, "penalty": "kl"}, r"'kl' has no"),
        ({"loss_mode": "grpo", "log_ratio_penalty": 1e-3}, r"log_ratio_penalty=0\.001 has no effect"),
        ({"loss_mode": "ipo", "delta": 0.1, "log_ratio_penalty": -1}, r"log_ratio_penalty=-1 must be"),
        (MASKED | {"sequence_mask": {"metric": "mean"}}, r"mask\.metric='mean' is not known.*geometric"),
        (MASKED | {"sequence_mask": {"preset": "trl"}}, r"sequence_mask\.preset='trl' is not known.*skyrl, slime"),
        (MASKED | {"sequence_mask": {"low": 0.9}}, r"sequence_mask\.low=0\.9 is not known.*lower"),
        (MASKED | {"sequence_mask": {"metric": "product"}}, r"metric='product' has no bounds"),
        (MASKED | {"sequence_mask": {"upper": 2.0}}, r"upper=2\.0 bounds nothing"),
        (MASKED | {"sequence_mask": {"metric": "max_kl", "lower": 0.1}}, r"lower=0\.1 would leave out.*small max_kl"),
        (MASKED | {"sequence_mask": {"metric": "product", "upper": 0.5}}, r"upper=0\.5 leaves out.*pi = mu"),
        (MASKED | {"sequence_mask": {"preset": "skyrl", "lower": 1.005}}, r"lower=1\.005 leaves out.*pi = mu"),
        (MASKED | {"sequence_mask": {"veto": 1.5}}, r"veto=1\.5 leaves out responses on which pi = mu.*below 1"),
        (MASKED | {"sequence_mask": {"veto": 0}}, r"veto=0 must be a number above 0"),
        ({"loss_mode": "drpo", "delta": 1, "region_delta": 0.1}, r"region_delta=0\.1 has no effect on.*drpo"),
        ({"loss_mode": "drpo", "delta": 1, "restrict_to": "negative"}, r"restrict_to='negative' has no effect"),
        ({"loss_mode": "drpo", "delta": 1, "top_k": 20}, r"top_k=20 has no effect"),
        ({"loss_mode": "drpo", "delta": 1, "target_outside": 0.1}, r"target_outside=0\.1 has no effect"),
        (
            {"loss_mode": "drpo", "delta": 1, "advantage_weighted": False, "ratio_cap": 5.0},
            r"ratio_cap=5\.0 caps a penalty.*Set one",
        ),
        ({"loss_mode": "mask_drpo", "delta": 1}, r"policy_loss\.region_delta is not set"),
        ({"loss_mode": "mask_drpo", "delta": 1, "region_delta": 0}, r"region_delta=0 must be a number above 0"),
        (
            {"loss_mode": "mask_drpo", "delta": 1, "region_delta": 0.1, "advantage_weighted": False},
            r"advantage_weighted=False has no effect",
        ),
        ({"loss_mode": "spo", "delta": 12.5, "penalty": "kl"}, r"penalty='kl' has no effect"),
        ({"loss_mode": "drpo", "delta": 0.2, "log_ratio_penalty": 0}, r"penalty=0 must be a number above 0.*to null"),
        ({"loss_mode": "dppo_binary_tv", "delta": 0.2, "ratio_cap": 0}, r"policy_loss\.ratio_cap=0 must be"),
        ({"loss_mode": "dppo_binary_tv", "delta": 0.2, "restrict_to": "both"}, r"restrict_to='both' is neither"),
        ({"loss_mode": "dppo_tvv", "delta": 0.2}, r"loss_mode='dppo_tvv' is not a method.*dppo_binary_tv"),
        ({"loss_mode": "dppo_topk_tv", "delta": 0.2}, r"policy_loss\.top_k is not set"),
        ({"loss_mode": "dppo_topk_tv", "delta": 0.2, "top_k": 2.5}, r"top_k=2\.5 must be a whole number"),
        ({"loss_mode": "surrogate", "delta": 0.2}, r"delta=0\.2 has no effect on loss_mode='surrogate'.*Leave it out"),
        ({"loss_mode": "grpo", "delta": 0.2}, r"policy_loss\.delta=0\.2 has no effect.*clip_ratio_low"),
        ({"loss_mode": "grpo", "ratio_cap": 5.0}, r"ratio_cap=5\.0 has no effect"),
        ({"loss_mode": "drpo", "delta": 0.2, "rollout_log_probs": False}, r"calculate_log_probs=False.*Set it to True"),
        ({"loss_mode": "grpo", "rollout_log_probs": False}, r"calculate_log_probs=False.*Set it to True"),
        ({"loss_mode": "drpo", "delta": 0.2, "bypass_mode": False}, r"bypass_mode=False.*Set it to True"),
        ({"loss_mode": "minirl", "delta": 0.2}, r"anchor='rollout', but.*recomputed pi_old.*Set it to recomputed"),
        ({"loss_mode": "drpo", "delta": 0.2, "anchor": "ema"}, r"anchor='ema' is not known.*rollout or recomputed"),
        ({"loss_mode": "surrogate", "anchor": "recomputed"}, r"anchor='recomputed' has no effect.*'surrogate'"),
        (
            {"loss_mode": "dppo_topk_tv", "delta": 0.2, "top_k": 4, "anchor": "recomputed"},
            r"anchor='recomputed', but.*Top-K distribution.*Set it to rollout",
        ),
        ({"loss_mode": "drpo_adaptive", "delta": 0.2}, r"target_outside is not set"),
        ({"loss_mode": "drpo_adaptive", **ADAPTIVE, "target_outside": 1.5}, "Set it below 1"),
        ({"loss_mode": "drpo_adaptive", **ADAPTIVE, "max_delta_step": 0.9}, "Set it above 1"),
        ({"loss_mode": "drpo_adaptive", **ADAPTIVE, "delta": 20.0}, r"delta=20\.0 is not within"),
        ({"loss_mode": "drpo_adaptive", **ADAPTIVE, "delta_low": 0.1}, r"delta_low=0\.1 has no"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrustRegionLossConfig(**settings)

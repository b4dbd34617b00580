"""Every wrong setting of the policy loss is refused with the setting's name, its value and the remedy."""

from __future__ import annotations

import pytest

from drpo_verl.integration.config import TrustRegionLossConfig
from drpo_verl.objectives import OBJECTIVES, TrustRegion


@pytest.mark.parametrize("loss_mode", list(OBJECTIVES))
def test_thresholds_reach_the_objective(loss_mode: str) -> None:
    assert TrustRegionLossConfig(loss_mode=loss_mode, delta=0.2).region() == TrustRegion(0.2, 0.2, None)
    both = TrustRegionLossConfig(loss_mode=loss_mode, delta_low=0.1, delta_high=0.3, ratio_cap=5)
    assert both.region() == TrustRegion(0.1, 0.3, 5)
    assert TrustRegionLossConfig(loss_mode=loss_mode, delta=0.2, delta_high=0.3).region() == TrustRegion(0.2, 0.3)


def test_the_baseline_needs_no_threshold() -> None:
    assert TrustRegionLossConfig(loss_mode="vanilla", bypass_mode=False).loss_mode == "vanilla"


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
        ({"loss_mode": "dppo_binary_tv", "delta": 0.2, "ratio_cap": 0}, r"policy_loss\.ratio_cap=0 must be"),
        ({"loss_mode": "dppo_tvv", "delta": 0.2}, r"loss_mode='dppo_tvv' is not a method.*dppo_binary_tv"),
        ({"loss_mode": "vanilla", "delta": 0.2}, r"policy_loss\.delta=0\.2 has no effect.*clip_ratio_low"),
        ({"loss_mode": "drpo", "delta": 0.2, "rollout_log_probs": False}, r"calculate_log_probs=False.*set it to True"),
        ({"loss_mode": "vanilla", "rollout_log_probs": False}, r"calculate_log_probs=False.*set it to True"),
        ({"loss_mode": "drpo", "delta": 0.2, "bypass_mode": False}, r"bypass_mode=False.*set it to True"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrustRegionLossConfig(**settings)  # type: ignore[arg-type]

"""The policy-loss section of a run's configuration, validated before Ray starts.

verl builds ``actor_rollout_ref.actor`` as a dataclass on the driver, in ``validate_config``, before it touches
Ray; the ``+method=`` groups select this class by ``_target_`` and fill its context fields by interpolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import DictConfig
from verl.workers.config import PolicyLossConfig

from drpo_verl.objectives import OBJECTIVES, TrustRegion

_SECTION = "actor_rollout_ref.actor.policy_loss"
_TARGET = "drpo_verl.integration.config.TrustRegionLossConfig"
VERL_VANILLA = "vanilla"
"""verl's own PPO clipping, the baseline; it takes its thresholds from ``actor.clip_ratio_low/high``."""


@dataclass
class TrustRegionLossConfig(PolicyLossConfig):
    """Settings of the objectives in ``drpo_verl.objectives``, named as in the papers.

    Args:
        loss_mode: a name in ``OBJECTIVES``, or verl's ``vanilla`` for the baseline.
        delta: the threshold, in the geometry's unit: abs(pi - mu) for ``drpo`` and ``dppo_binary_tv``, nats for
            ``dppo_binary_kl``. > 0.
        delta_low: the threshold for tokens whose probability fell, instead of ``delta``.
        delta_high: the threshold for tokens whose probability rose, instead of ``delta``.
        ratio_cap: C of truncated importance sampling; None for no cap. > 0.
        bypass_mode: a copy of ``algorithm.rollout_correction.bypass_mode``, to be validated here.
        rollout_log_probs: a copy of ``actor_rollout_ref.rollout.calculate_log_probs``, likewise.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """

    delta: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    ratio_cap: float | None = None
    bypass_mode: bool = True
    rollout_log_probs: bool = True

    def __post_init__(self) -> None:
        """Validate; see the class."""
        self._require_behaviour_log_probs()
        if self.loss_mode == VERL_VANILLA:
            self._reject_thresholds()
        elif self.loss_mode in OBJECTIVES:
            self._require_thresholds()
            self._require_behaviour_anchor()
        else:
            raise ValueError(
                f"{_SECTION}.loss_mode={self.loss_mode!r} is not a method of drpo-verl. "
                f"Choose one with +method=<name>; loss modes: {', '.join([*OBJECTIVES, VERL_VANILLA])}."
            )

    def _reject_thresholds(self) -> None:
        for name in ("delta", "delta_low", "delta_high", "ratio_cap"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{_SECTION}.{name}={getattr(self, name)} has no effect on loss_mode={VERL_VANILLA!r}, which clips "
                    f"the ratio: set actor_rollout_ref.actor.clip_ratio_low and clip_ratio_high instead."
                )

    def _require_thresholds(self) -> None:
        if self.delta is None and (self.delta_low is None or self.delta_high is None):
            raise ValueError(
                f"{_SECTION}.delta is not set, and loss_mode={self.loss_mode!r} needs it. "
                f"+method={self.loss_mode} sets the paper's default."
            )
        for name in ("delta", "delta_low", "delta_high", "ratio_cap"):
            value = getattr(self, name)
            if value is not None and not _is_positive(value):
                raise ValueError(f"{_SECTION}.{name}={value!r} must be a number above 0.")

    def _require_behaviour_log_probs(self) -> None:
        if not self.rollout_log_probs and (self.bypass_mode or self.loss_mode in OBJECTIVES):
            raise ValueError(
                f"actor_rollout_ref.rollout.calculate_log_probs=False, but loss_mode={self.loss_mode!r} measures pi "
                "against the rollout engine's own log-probabilities: set it to True."
            )

    def _require_behaviour_anchor(self) -> None:
        if not self.bypass_mode:
            raise ValueError(
                f"algorithm.rollout_correction.bypass_mode=False, but loss_mode={self.loss_mode!r} is anchored on the "
                "behaviour policy (the rollout log-probabilities), not on a recomputed pi_old: set it to True."
            )

    def region(self) -> TrustRegion:
        """The thresholds as the objectives take them."""
        low = self.delta if self.delta_low is None else self.delta_low
        high = self.delta if self.delta_high is None else self.delta_high
        if low is None or high is None:  # unreachable after __post_init__, which the type checker cannot know
            raise ValueError(f"{_SECTION}.delta is not set.")
        return TrustRegion(float(low), float(high), self.ratio_cap)


def check_loss_mode(config: DictConfig) -> None:
    """Refuse, on the driver, a loss mode that the workers would refuse.

    Args:
        config: a whole run's.

    Raises:
        ValueError: when nobody has registered the loss mode, or when it is ours and its configuration is not.
    """
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    section = config.actor_rollout_ref.actor.policy_loss
    mode = section.loss_mode
    # A library named there is imported by the workers only, and may register losses of its own.
    if mode not in POLICY_LOSS_REGISTRY and not config.actor_rollout_ref.model.get("external_lib"):
        raise ValueError(
            f"{_SECTION}.loss_mode={mode!r} is not a loss mode; known: {', '.join(sorted(POLICY_LOSS_REGISTRY))}."
        )
    if mode in OBJECTIVES and not config.trainer.get("use_v1", True):
        raise ValueError(
            f"trainer.use_v1=False, but loss_mode={mode!r} needs verl's V1 trainer: the legacy one replaces the loss "
            "mode in bypass mode. Set it to True."
        )
    if mode in OBJECTIVES and section.get("_target_") != _TARGET:
        raise ValueError(
            f"{_SECTION}.loss_mode={mode!r} was set without its configuration: use +method={mode} instead, which "
            "sets the loss mode, its thresholds and its anchor."
        )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)

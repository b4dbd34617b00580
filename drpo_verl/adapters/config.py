"""The policy-loss section of a run's configuration, validated before Ray starts.

verl builds ``actor_rollout_ref.actor`` as a dataclass on the driver, in ``validate_config``, before it touches
Ray; the ``+method=`` groups select this class by ``_target_`` and fill its context fields by interpolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from verl.workers.config import PolicyLossConfig

from drpo_verl.adapters import sequence_mask
from drpo_verl.adapters.setting import (
    SettingError,
    is_positive,
    needs_budget,
    setting,
    takes_penalty,
    takes_threshold,
    takes_two_thresholds,
)
from drpo_verl.losses import OBJECTIVES, PENALTIES, Objective, PrefixBudget, SequenceMask, TrustRegion
from drpo_verl.losses.adaptive import DeltaController
from drpo_verl.losses.partition import TAILS
from drpo_verl.seams import missing_plugin

_SECTION = "actor_rollout_ref.actor.policy_loss"
_BYPASS_MODE = "algorithm.rollout_correction.bypass_mode"

_OPTIONAL = ("ratio_cap", "delta_low", "delta_high", "delta_b_quantile", "log_ratio_penalty")

ROLLOUT, RECOMPUTED = "rollout", "recomputed"
"""What a distance is measured from: the rollout engine's log-probabilities, or the trainer's own, computed again."""

_EVERYWHERE = 1.0
"""No probability moves by more: the boundary of a method without one, for what is counted about its tokens."""


@dataclass
class TrustRegionLossConfig(PolicyLossConfig):
    """Settings of the objectives in ``drpo_verl.losses``, named as in the papers.

    Args:
        loss_mode: a name in ``OBJECTIVES``.
        delta: the threshold, in the geometry's unit: abs(pi - mu) for ``drpo`` and ``dppo_binary_tv``, nats for the KL
            divergences, abs(r - 1) for ``spo`` and ``minirl``. > 0.
        delta_low: the threshold for tokens whose probability fell, instead of ``delta``.
        delta_high: the threshold for tokens whose probability rose, instead of ``delta``.
        region_delta: for ``mask_drpo``, DPPO's boundary: abs(pi - mu) beyond which a diverging token is regularised.
        ratio_cap: C of truncated importance sampling; None for no cap. > 0.
        penalty: instead of DRPO's own, "l2": "chi2", "kl", "tv" or "k3" (DRPO's ablation).
        advantage_weighted: whether the penalty is multiplied by abs(A) (DRPO's ablation: without, it is unstable).
        restrict_to: "positive" or "negative": only tokens with such an advantage are masked (DPPO's ablation).
        anchor: "rollout": distances are measured from the behaviour policy mu, as the rollout engine reported it;
            "recomputed": from pi_old, the trainer's own policy before the first update on these samples. The ratio
            r = pi / mu in the gradient is that of mu either way.
        top_k: K of the Top-K divergences; the sampled token comes on top of it.
        tail: for ``pdm``, what is assumed of the tokens beyond the Top-K: "aggregated", that they are one token, or
            "uniform", that they share their probability evenly.
        w_min: for the prefix methods, the position weight of a response's last token; in (0, 1].
        delta_b: for the prefix methods, the budget of a token in the weighted mean over the prefix.
        delta_b_quantile: the quantile of a response's own distances that its budget is, between ``delta_b`` and twice
            that; None for ``delta_b`` itself.
        log_ratio_penalty: tau of a penalty ``tau (log r)^2`` on every token, whatever its advantage; None for none.
        sequence_mask: which responses are left out of the update (``preset``, or ``metric``, ``lower``, ``upper``; and
            ``veto``), beside any method.
        target_outside: for ``drpo_adaptive``, the share of the diverging tokens that delta keeps outside; in (0, 1).
        adaptation_gain: d log delta per relative error of that share; > 0.
        max_delta_step: the largest factor by which delta changes in one step; > 1.
        delta_min: delta never falls below. > 0.
        delta_max: delta never rises above.
        diagnostics: whether to log moments, quantiles and bins of the mismatch beside the trust region's metrics.
        bypass_mode: a copy of ``algorithm.rollout_correction.bypass_mode``, to be validated here.
        rollout_log_probs: a copy of ``actor_rollout_ref.rollout.calculate_log_probs``, to be validated here.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """

    delta: float | None = setting(takes_threshold)
    delta_low: float | None = setting(takes_two_thresholds)
    delta_high: float | None = setting(takes_two_thresholds)
    region_delta: float | None = setting(lambda row: row.enforcement.gated)
    ratio_cap: float | None = setting(lambda row: row.verl_loss is None)
    penalty: str | None = setting(takes_penalty, number=False)
    advantage_weighted: bool = setting(
        lambda row: (
            row.enforcement.attenuates
            and not row.enforcement.gated
            and row.scope is None
            and row.geometry.penalty is not None
        ),
        default=True,
        number=False,
    )
    restrict_to: str | None = setting(
        lambda row: row.verl_loss is None and (not row.enforcement.attenuates or row.enforcement.gated)
        and row.enforcement.needs_threshold, number=False,
    )  # fmt: skip
    anchor: str = setting(lambda row: row.enforcement.needs_threshold, default=ROLLOUT, number=False)
    top_k: int | None = setting(lambda row: row.needs_top_k)
    tail: str | None = setting(lambda row: row.direction.needs_derivative, number=False)
    w_min: float | None = setting(needs_budget)
    delta_b: float | None = setting(needs_budget)
    delta_b_quantile: float | None = setting(needs_budget)
    log_ratio_penalty: float | None = setting(lambda row: row.verl_loss is None)
    sequence_mask: dict[str, Any] | None = None
    target_outside: float | None = setting(lambda row: row.adaptive)
    adaptation_gain: float | None = setting(lambda row: row.adaptive)
    max_delta_step: float | None = setting(lambda row: row.adaptive)
    delta_min: float | None = setting(lambda row: row.adaptive)
    delta_max: float | None = setting(lambda row: row.adaptive)
    diagnostics: bool = True
    bypass_mode: bool = True
    rollout_log_probs: bool = True

    def __post_init__(self) -> None:
        """Validate; see the class."""
        missing = missing_plugin()
        if missing is not None:
            raise SettingError(*missing)
        if self.loss_mode not in OBJECTIVES:
            self._refuse(
                "loss_mode",
                "is not a method of drpo-verl.",
                f"Choose one with +method=<name>: {', '.join(OBJECTIVES)}.",
            )
        row = OBJECTIVES[self.loss_mode]
        self._require_behaviour_log_probs(row)
        self._reject_what_has_no_effect(row)
        self._require_choices(row)
        self._require_anchor(row)
        self._require_numbers(row)

    def _refuse(self, name: str, problem: str, remedy: str) -> None:
        raise SettingError(f"{_SECTION}.{name}", getattr(self, name), problem, remedy)

    def _reject_what_has_no_effect(self, row: Objective) -> None:
        for each in fields(self):
            applies = each.metadata.get("applies")
            if applies is None or applies(row) or getattr(self, each.name) == each.default:
                continue
            remedy = "Leave it out."
            if row.verl_loss is not None and each.name.startswith("delta"):
                remedy = "Set actor_rollout_ref.actor.clip_ratio_low and clip_ratio_high instead."
            self._refuse(each.name, f"has no effect on loss_mode={self.loss_mode!r}.", remedy)

    def _require_choices(self, row: Objective) -> None:
        if self.penalty is not None and self.penalty not in PENALTIES:
            self._refuse("penalty", "is not known.", f"Set it to one of {', '.join(PENALTIES)}.")
        if self.restrict_to not in (None, "positive", "negative"):
            self._refuse("restrict_to", "is neither positive nor negative.", "Set it to one of them, or null.")
        if row.direction.needs_derivative and self.tail not in TAILS:
            self._refuse(
                "tail", "says nothing about the tokens beyond the Top-K.", f"Set it to one of {', '.join(TAILS)}."
            )
        for key, value, problem, remedy in sequence_mask.problems(self.sequence_mask):
            raise SettingError(f"{_SECTION}.sequence_mask.{key}", value, problem, remedy)
        if not self.advantage_weighted and self.ratio_cap is not None:
            self._refuse("ratio_cap", "caps a penalty that advantage_weighted=false sets apart.", "Set one of the two.")

    def _require_numbers(self, row: Objective) -> None:
        for each in fields(self):
            if not each.metadata.get("number") or not each.metadata["applies"](row):
                continue
            value = getattr(self, each.name)
            if each.name == "delta" and None not in (value, self.delta_low, self.delta_high):
                self._refuse("delta", "has no effect beside delta_low and delta_high.", "Set those.")
            if value is not None and not is_positive(value):
                remedy = "Set it to null." if each.name in _OPTIONAL else f"+method={self.loss_mode} sets a default."
                self._refuse(each.name, "must be a number above 0.", remedy)
            optional = each.name in _OPTIONAL or (
                each.name == "delta" and self.delta_low is not None and self.delta_high is not None
            )
            if value is None and not optional:
                self._refuse(
                    each.name,
                    f"is not set, and loss_mode={self.loss_mode!r} needs it.",
                    f"+method={self.loss_mode} sets a default.",
                )
        if self.top_k is not None and not isinstance(self.top_k, int):
            self._refuse("top_k", "must be a whole number.", "20 is the paper's.")
        if row.adaptive:
            self._require_adaptation()
        if self.w_min is not None and self.w_min > 1:
            self._refuse(
                "w_min", "is the weight of the last token, and that of the first is 1.", "Set it to at most 1."
            )
        if self.delta_b_quantile is not None and self.delta_b_quantile >= 1:
            self._refuse("delta_b_quantile", "is a share of the tokens.", "Set it below 1, or to null.")

    def _require_adaptation(self) -> None:
        if self.penalty == "tv":
            self._refuse("penalty", "knows no distance, and so no share of tokens within delta.", "Choose another.")
        assert self.target_outside is not None and self.max_delta_step is not None
        assert self.delta is not None and self.delta_min is not None and self.delta_max is not None
        if self.target_outside >= 1:
            self._refuse("target_outside", "is a share of the diverging tokens.", "Set it below 1.")
        if self.max_delta_step <= 1:
            self._refuse("max_delta_step", "is a factor.", "Set it above 1.")
        if not self.delta_min <= self.delta <= self.delta_max:
            bounds = f"delta_min={self.delta_min} and delta_max={self.delta_max}"
            self._refuse("delta", f"is not within {bounds}.", "It is where delta begins: set it between them.")

    def _require_behaviour_log_probs(self, row: Objective) -> None:
        if not self.rollout_log_probs and (self.bypass_mode or row.verl_loss is None):
            raise SettingError(
                "actor_rollout_ref.rollout.calculate_log_probs",
                False,
                f"but loss_mode={self.loss_mode!r} measures pi against the rollout engine's own log-probabilities.",
                "Set it to True.",
            )

    def _require_anchor(self, row: Objective) -> None:
        if self.anchor not in (ROLLOUT, RECOMPUTED):
            self._refuse("anchor", "is not known.", f"It is {ROLLOUT} or {RECOMPUTED}.")
        if row.recomputed_anchor and self.anchor != RECOMPUTED:
            self._refuse(
                "anchor",
                f"but loss_mode={self.loss_mode!r} measures from a recomputed pi_old.",
                f"Set it to {RECOMPUTED}.",
            )
        if self.anchor == RECOMPUTED and row.needs_top_k:
            self._refuse(
                "anchor",
                f"but loss_mode={self.loss_mode!r} has the Top-K distribution of the rollout engine, and not pi_old's.",
                f"Set it to {ROLLOUT}.",
            )
        if not self.bypass_mode and row.verl_loss is None and self.anchor == ROLLOUT:
            raise SettingError(
                _BYPASS_MODE,
                False,
                f"but loss_mode={self.loss_mode!r} is anchored on the behaviour policy (the rollout log-probabilities),"
                " not on a recomputed pi_old.",
                "Set it to True.",
            )

    def objective(self) -> Objective:
        """The row of the table, with the anchor and the ablated penalty in their places."""
        row = replace(OBJECTIVES[self.loss_mode], recomputed_anchor=self.anchor == RECOMPUTED)
        return row if self.penalty is None else replace(row, geometry=PENALTIES[self.penalty])

    def region(self, delta: float | None = None) -> TrustRegion:
        """The thresholds as the objectives take them; for verl's own losses, see ``verl_region``.

        Args:
            delta: a controller's, instead of the configured one.
        """
        if not OBJECTIVES[self.loss_mode].enforcement.needs_threshold:
            return TrustRegion(_EVERYWHERE, _EVERYWHERE, self.ratio_cap, log_ratio_penalty=self.log_ratio_penalty)
        delta = self.delta if delta is None else delta
        low, high = (delta if one is None else one for one in (self.delta_low, self.delta_high))
        if low is None or high is None:  # unreachable after __post_init__, which the type checker cannot know
            raise ValueError(f"{_SECTION}.delta is not set.")
        return TrustRegion(
            delta_low=float(low),
            delta_high=float(high),
            ratio_cap=self.ratio_cap,
            region_delta=math.inf if self.region_delta is None else float(self.region_delta),
            advantage_weighted=self.advantage_weighted,
            restrict_to=self.restrict_to,  # type: ignore[arg-type]  # one of the two literals, or None
            prefix_budget=self._prefix_budget(),
            log_ratio_penalty=self.log_ratio_penalty,
        )

    def _prefix_budget(self) -> PrefixBudget | None:
        if self.w_min is None or self.delta_b is None:
            return None
        return PrefixBudget(float(self.w_min), float(self.delta_b), self.delta_b_quantile)

    def mask_of_sequences(self) -> SequenceMask | None:
        """Which responses are left out of the update; None for none."""
        return sequence_mask.sequence_mask(self.sequence_mask)

    def controller(self) -> DeltaController | None:
        """What moves delta, for a method that adapts it."""
        if not OBJECTIVES[self.loss_mode].adaptive:
            return None
        return DeltaController(
            delta=float(self.delta),  # type: ignore[arg-type]  # all set: __post_init__
            target=float(self.target_outside),  # type: ignore[arg-type]
            gain=float(self.adaptation_gain),  # type: ignore[arg-type]
            max_step=float(self.max_delta_step),  # type: ignore[arg-type]
            delta_min=float(self.delta_min),  # type: ignore[arg-type]
            delta_max=float(self.delta_max),  # type: ignore[arg-type]
        )


def verl_region(actor: Any) -> TrustRegion:
    """The clip thresholds of verl's PPO loss, dual clip included.

    Args:
        actor: verl's ``ActorConfig``.
    """
    low, high = (actor.clip_ratio if one is None else one for one in (actor.clip_ratio_low, actor.clip_ratio_high))
    return TrustRegion(float(low), float(high), dual_clip=float(actor.clip_ratio_c))

"""The policy-loss section of a run's configuration, validated before Ray starts.

verl builds ``actor_rollout_ref.actor`` as a dataclass on the driver, in ``validate_config``, before it touches
Ray; the ``+method=`` groups select this class by ``_target_`` and fill its context fields by interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.workers.config import PolicyLossConfig

from drpo_verl.objectives import OBJECTIVES, PENALTIES, Objective, TrustRegion
from drpo_verl.objectives.adaptive import DeltaController
from drpo_verl.objectives.geometry import PROBABILITY

_SECTION = "actor_rollout_ref.actor.policy_loss"
_TARGET = "drpo_verl.integration.config.TrustRegionLossConfig"

_Applies = Callable[[Objective], bool]

_EVERYWHERE = 1.0
"""No probability moves by more: the boundary of a method without one, for what is counted about its tokens."""


def _takes_threshold(row: Objective) -> bool:
    return row.enforcement.needs_threshold and row.verl_loss is None


def _takes_penalty(row: Objective) -> bool:
    return row.enforcement.attenuates and row.geometry is PROBABILITY


def _setting(applies: _Applies, default: Any = None, number: bool = True) -> Any:
    return field(default=default, metadata={"applies": applies, "number": number})


@dataclass
class TrustRegionLossConfig(PolicyLossConfig):
    """Settings of the objectives in ``drpo_verl.objectives``, named as in the papers.

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
        top_k: K of the Top-K divergences; the sampled token comes on top of it.
        target_outside: for ``drpo_adaptive``, the share of the diverging tokens that delta keeps outside; in (0, 1).
        adaptation_gain: d log delta per relative error of that share; > 0.
        max_delta_step: the largest factor by which delta changes in one step; > 1.
        delta_min: delta never falls below. > 0.
        delta_max: delta never rises above.
        instruments: whether to log moments, quantiles and bins of the mismatch beside the trust region's metrics.
        bypass_mode: a copy of ``algorithm.rollout_correction.bypass_mode``, to be validated here.
        rollout_log_probs: a copy of ``actor_rollout_ref.rollout.calculate_log_probs``, likewise.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """

    delta: float | None = _setting(_takes_threshold)
    delta_low: float | None = _setting(lambda row: _takes_threshold(row) and not row.adaptive)
    delta_high: float | None = _setting(lambda row: _takes_threshold(row) and not row.adaptive)
    region_delta: float | None = _setting(lambda row: row.enforcement.gated)
    ratio_cap: float | None = _setting(lambda row: row.verl_loss is None)
    penalty: str | None = _setting(_takes_penalty, number=False)
    advantage_weighted: bool = _setting(
        lambda row: row.enforcement.attenuates and not row.enforcement.gated and row.geometry.penalty is not None,
        default=True,
        number=False,
    )
    restrict_to: str | None = _setting(
        lambda row: row.verl_loss is None and (not row.enforcement.attenuates or row.enforcement.gated)
        and row.enforcement.needs_threshold, number=False,
    )  # fmt: skip
    top_k: int | None = _setting(lambda row: row.needs_top_k)
    target_outside: float | None = _setting(lambda row: row.adaptive)
    adaptation_gain: float | None = _setting(lambda row: row.adaptive)
    max_delta_step: float | None = _setting(lambda row: row.adaptive)
    delta_min: float | None = _setting(lambda row: row.adaptive)
    delta_max: float | None = _setting(lambda row: row.adaptive)
    instruments: bool = True
    bypass_mode: bool = True
    rollout_log_probs: bool = True

    def __post_init__(self) -> None:
        """Validate; see the class."""
        if self.loss_mode not in OBJECTIVES:
            raise ValueError(
                f"{_SECTION}.loss_mode={self.loss_mode!r} is not a method of drpo-verl. "
                f"Choose one with +method=<name>: {', '.join(OBJECTIVES)}."
            )
        row = OBJECTIVES[self.loss_mode]
        self._require_behaviour_log_probs(row)
        self._reject_what_has_no_effect(row)
        self._require_choices()
        self._require_numbers(row)
        self._require_anchor(row)

    def _refuse(self, name: str, remedy: str) -> None:
        raise ValueError(f"{_SECTION}.{name}={getattr(self, name)!r} {remedy}")

    def _reject_what_has_no_effect(self, row: Objective) -> None:
        for each in fields(self):
            applies = each.metadata.get("applies")
            if applies is None or applies(row) or getattr(self, each.name) == each.default:
                continue
            remedy = "leave it out."
            if row.verl_loss is not None and each.name.startswith("delta"):
                remedy = "set actor_rollout_ref.actor.clip_ratio_low and clip_ratio_high instead."
            self._refuse(each.name, f"has no effect on loss_mode={self.loss_mode!r}: {remedy}")

    def _require_choices(self) -> None:
        if self.penalty is not None and self.penalty not in PENALTIES:
            self._refuse("penalty", f"is not one of {', '.join(PENALTIES)}.")
        if self.restrict_to not in (None, "positive", "negative"):
            self._refuse("restrict_to", "is neither positive nor negative (null restricts nothing).")
        if not self.advantage_weighted and self.ratio_cap is not None:
            self._refuse("ratio_cap", "caps a penalty that advantage_weighted=false sets apart: choose one of the two.")

    def _require_numbers(self, row: Objective) -> None:
        for each in fields(self):
            if not each.metadata.get("number") or not each.metadata["applies"](row):
                continue
            value = getattr(self, each.name)
            if each.name == "delta" and None not in (value, self.delta_low, self.delta_high):
                self._refuse("delta", "has no effect beside delta_low and delta_high: set those.")
            if value is not None and not _is_positive(value):
                self._refuse(each.name, "must be a number above 0.")
            optional = each.name in ("ratio_cap", "delta_low", "delta_high") or (
                each.name == "delta" and self.delta_low is not None and self.delta_high is not None
            )
            if value is None and not optional:
                raise ValueError(
                    f"{_SECTION}.{each.name} is not set, and loss_mode={self.loss_mode!r} needs it. "
                    f"+method={self.loss_mode} sets a default."
                )
        if self.top_k is not None and not isinstance(self.top_k, int):
            self._refuse("top_k", "must be a whole number.")
        if row.adaptive:
            self._require_adaptation()

    def _require_adaptation(self) -> None:
        if self.penalty == "tv":
            self._refuse("penalty", "knows no distance, and so no share of tokens within delta: take another.")
        assert self.target_outside is not None and self.max_delta_step is not None
        assert self.delta is not None and self.delta_min is not None and self.delta_max is not None
        if self.target_outside >= 1:
            self._refuse("target_outside", "is a share of the diverging tokens: it must be below 1.")
        if self.max_delta_step <= 1:
            self._refuse("max_delta_step", "is a factor: it must be above 1.")
        if not self.delta_min <= self.delta <= self.delta_max:
            self._refuse("delta", f"must be within delta_min={self.delta_min} and delta_max={self.delta_max}.")

    def _require_behaviour_log_probs(self, row: Objective) -> None:
        if not self.rollout_log_probs and (self.bypass_mode or row.verl_loss is None):
            raise ValueError(
                f"actor_rollout_ref.rollout.calculate_log_probs=False, but loss_mode={self.loss_mode!r} measures pi "
                "against the rollout engine's own log-probabilities: set it to True."
            )

    def _require_anchor(self, row: Objective) -> None:
        if row.recomputed_anchor and self.bypass_mode:
            raise ValueError(
                f"algorithm.rollout_correction.bypass_mode=True, but loss_mode={self.loss_mode!r} measures the ratio "
                "from a recomputed pi_old: set it to False."
            )
        if not self.bypass_mode and row.verl_loss is None and not row.recomputed_anchor:
            raise ValueError(
                f"algorithm.rollout_correction.bypass_mode=False, but loss_mode={self.loss_mode!r} is anchored on the "
                "behaviour policy (the rollout log-probabilities), not on a recomputed pi_old: set it to True."
            )

    def objective(self) -> Objective:
        """The row of the table, with the ablated penalty in its place."""
        row = OBJECTIVES[self.loss_mode]
        return row if self.penalty is None else replace(row, geometry=PENALTIES[self.penalty])

    def region(self, delta: float | None = None) -> TrustRegion:
        """The thresholds as the objectives take them; for verl's own losses, see ``verl_region``.

        Args:
            delta: a controller's, instead of the configured one.
        """
        if not OBJECTIVES[self.loss_mode].enforcement.needs_threshold:
            return TrustRegion(_EVERYWHERE, _EVERYWHERE, self.ratio_cap)
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
        )

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


def check_run(config: DictConfig) -> None:
    """Refuse, on the driver, what the workers would refuse, or would do otherwise than it was meant.

    Args:
        config: a whole run's.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    section = config.actor_rollout_ref.actor.policy_loss
    mode = section.loss_mode
    # A library named there is imported by the workers only, and may register losses of its own.
    if mode not in POLICY_LOSS_REGISTRY and not config.actor_rollout_ref.model.get("external_lib"):
        raise ValueError(
            f"{_SECTION}.loss_mode={mode!r} is not a loss mode; known: {', '.join(sorted(POLICY_LOSS_REGISTRY))}."
        )
    if mode not in OBJECTIVES:
        return
    if section.get("_target_") != _TARGET:
        raise ValueError(
            f"{_SECTION}.loss_mode={mode!r} was set without its configuration: use +method={mode} instead, which "
            "sets the loss mode, its thresholds and its anchor."
        )
    row = OBJECTIVES[mode]
    _refuse(config, mode, _ALWAYS)
    if OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode"):
        _refuse(config, mode, _BYPASS)
    if row.recomputed_anchor:
        _refuse(config, mode, _RECOMPUTED)
    if row.needs_top_k:
        _refuse(config, mode, _TOP_K)
        asked, sent = section.top_k, OmegaConf.select(config, "actor_rollout_ref.rollout.custom.drpo_verl.top_k")
        if asked != sent:
            raise ValueError(
                f"actor_rollout_ref.rollout.custom.drpo_verl.top_k={sent}, but {_SECTION}.top_k={asked}: the rollout "
                f"has to return what the loss expects. +method={mode} ties the two; leave rollout.custom alone."
            )


@dataclass(frozen=True)
class _Required:
    """A setting that some methods need at certain values."""

    allowed: tuple[Any, ...]
    remedy: str
    default: Any = None


_ALWAYS: Mapping[str, _Required] = {
    "trainer.use_v1": _Required(
        (True,), "the legacy trainer replaces the loss mode in bypass mode. Set it to True.", default=True
    ),
    "distillation.enabled": _Required(
        (False, None), "verl's distillation replaces the loss function that ours is wrapped around. Set it to False."
    ),
    **{
        f"actor_rollout_ref.rollout.{name}": _Required(
            (value, None), f"the rollout would sample from another distribution than the policy. Set it to {value}."
        )
        for name, value in (("top_p", 1.0), ("top_k", -1), ("repetition_penalty", 1.0))
    },
    "actor_rollout_ref.rollout.logprobs_mode": _Required(
        ("processed_logprobs", None), "log mu has to be that of the distribution that was sampled from, temperature "
        "included. Set it to processed_logprobs.",
    ),
}  # fmt: skip
_BYPASS: Mapping[str, _Required] = {
    f"algorithm.rollout_correction.{name}": _Required(
        (None,), f"verl's V1 trainer {does} nothing in bypass mode. Set it to null."
    )
    for name, does in (("rollout_rs", "rejects"), ("rollout_is", "weighs"))
}
_RECOMPUTED: Mapping[str, _Required] = {
    "algorithm.rollout_correction.rollout_is": _Required(
        (None,), "the loss truncates pi / mu itself (policy_loss.ratio_cap), and a second weight would count mu twice. "
        "Set it to null.",
    ),
}  # fmt: skip
_TOP_K: Mapping[str, _Required] = {
    "actor_rollout_ref.rollout.name": _Required(("vllm",), "the Top-K log-probabilities come from vLLM."),
    "actor_rollout_ref.actor.strategy": _Required(("fsdp", "fsdp2"), "Top-K is gathered from FSDP's logits."),
    "actor_rollout_ref.model.use_fused_kernels": _Required(
        (False, None), "Top-K is gathered from the logits, which fused kernels never make. Set it to False."
    ),
    "actor_rollout_ref.rollout.multi_turn.enable": _Required(
        (False, None), "the Top-K log-probabilities travel with single-turn samples only. Set it to False."
    ),
    "actor_rollout_ref.rollout.agent.default_agent_loop": _Required(
        ("single_turn_agent", None), "the Top-K log-probabilities travel with single-turn samples only."
    ),
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size": _Required(
        (1, None), "Top-K is not gathered across sequence-parallel ranks. Set it to 1."
    ),
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size": _Required(
        (1, None), "Top-K is not gathered across sequence-parallel ranks. Set it to 1."
    ),
    "trainer.v1.trainer_mode": _Required(
        ("sync", None),
        "an asynchronous trainer's interrupted samples lose their Top-K log-probabilities. Set it to sync.",
    ),
    "actor_rollout_ref.rollout.agent.agent_loop_config_path": _Required(
        (None,), "the Top-K log-probabilities travel with verl's own single-turn samples only. Set it to null."
    ),
    "actor_rollout_ref.rollout.disaggregation.enabled": _Required(
        (False, None), "a disaggregated rollout does not return Top-K log-probabilities. Set it to False."
    ),
    "actor_rollout_ref.actor.fsdp_config.pad_to_length": _Required(
        (None, False, 0), "the rows of Top-K would not be those of the padded logits. Set it to null."
    ),
}


def _refuse(config: DictConfig, mode: str, requirements: Mapping[str, _Required]) -> None:
    for name, required in requirements.items():
        value = OmegaConf.select(config, name, default=required.default)
        if value not in required.allowed:
            raise ValueError(f"{name}={value!r}, but with loss_mode={mode!r} {required.remedy}")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)

"""The objectives as policy losses: what verl's actor trains with, and what verl's registry knows by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, get_policy_loss_fn, register_policy_loss

from drpo_verl.adapters.anchor import AnchorError
from drpo_verl.adapters.config import TrustRegionLossConfig, verl_region
from drpo_verl.adapters.top_k import require_divergence
from drpo_verl.losses import OBJECTIVES, Objective, TokenAccumulators, TokenRatio, TokenStatistics, token_loss
from drpo_verl.losses.table import for_each_objective
from drpo_verl.metrics.names import ABS_PROB_DIFF_MEAN, ANCHOR_ABS_PROB_DIFF_MEAN, PARTITION_DIVERGENCE
from drpo_verl.seams import SeamError, expect_parameters


class BehaviourLogProbError(ValueError):
    """The rollout engine's log-probabilities are missing from a batch, or are not numbers."""


@dataclass(frozen=True)
class LossInputs:
    """A micro-batch, padded; each field ``[B, T]``.

    Attributes:
        log_prob: log pi of the sampled tokens, with the graph of the forward pass.
        old_log_prob: what distances are measured from: log mu, as the rollout engine reported it, or a recomputed
            pi_old.
        advantages: A.
        response_mask: which positions are response tokens.
        rollout_is_weights: detached importance weights, or None.
        log_behaviour: log mu, where ``old_log_prob`` is a recomputed pi_old, else None.
        partition_divergence: D over the Top-K partition, for an objective that is measured by it.
        partition_derivative: its derivative along the token's gradient, for a predictive direction.
    """

    log_prob: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    response_mask: Tensor
    rollout_is_weights: Tensor | None = None
    log_behaviour: Tensor | None = None
    partition_divergence: Tensor | None = None
    partition_derivative: Tensor | None = None


def trust_region_loss(
    config: Any, inputs: LossInputs, loss_agg_mode: str, delta: float | None = None
) -> tuple[Tensor, dict[str, Any], TokenAccumulators]:
    """The loss of the configured objective on one micro-batch.

    Args:
        config: verl's ``ActorConfig``, with a ``TrustRegionLossConfig`` and the sizes of the global batch.
        inputs: the micro-batch.
        loss_agg_mode: as verl's ``agg_loss`` has it.
        delta: the threshold now, where a controller moves it.

    Returns:
        The scalar loss; verl's metrics, where the loss is one of verl's; and the statistics of the tokens, still on the
        device.

    Raises:
        SeamError: when the objective needs the rollout log-probabilities beside a recomputed anchor.
    """
    settings: TrustRegionLossConfig = config.policy_loss
    objective = settings.objective()
    if objective.recomputed_anchor and inputs.log_behaviour is None:
        raise SeamError(
            f"loss_mode={settings.loss_mode!r} needs the rollout log-probabilities beside the recomputed ones."
        )
    is_decoupled = inputs.log_behaviour is not None
    tokens = token_loss(
        objective,
        verl_region(config) if objective.verl_loss else settings.region(delta),
        inputs.log_prob,
        inputs.log_behaviour if inputs.log_behaviour is not None else inputs.old_log_prob,
        inputs.advantages,
        inputs.response_mask,
        inputs.rollout_is_weights,
        log_anchor=inputs.old_log_prob if is_decoupled else None,
        partition_divergence=inputs.partition_divergence,
        partition_derivative=inputs.partition_derivative,
        sequence_mask=settings.mask_of_sequences(),
        diagnostics=settings.diagnostics,
    )
    if objective.verl_loss is None:
        loss = agg_loss(
            loss_mat=tokens.loss,
            loss_mask=tokens.mask,
            loss_agg_mode=loss_agg_mode,
            **config.global_batch_info,
        )
        return loss, {}, tokens.accumulators
    # The baseline is verl's own, to the last digit; ours only says what it did.
    weights = inputs.rollout_is_weights
    if objective.recomputed_anchor and inputs.log_behaviour is not None:
        # verl's ratio is pi / pi_old: with this factor it is pi / mu, as in every other method.
        behind = TokenRatio.of(inputs.old_log_prob.float(), inputs.log_behaviour.float()).ratio
        weights = behind if weights is None else behind * weights
    loss, verl_metrics = get_policy_loss_fn(objective.verl_loss)(
        old_log_prob=inputs.old_log_prob,
        log_prob=inputs.log_prob,
        advantages=inputs.advantages,
        response_mask=inputs.response_mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=_with_mask(weights, tokens.kept),
    )
    return loss, verl_metrics, tokens.accumulators


def _with_mask(weights: Tensor | None, kept: Tensor | None) -> Tensor | None:
    """The importance weights, 0 on the responses that a sequence mask leaves out."""
    if kept is None or weights is None:
        return weights if kept is None else kept
    return weights * kept


def require_usable(statistics: TokenStatistics, inputs: LossInputs) -> None:
    """Refuse a micro-batch whose gradient would be wrong.

    Args:
        statistics: of its tokens.
        inputs: the micro-batch.

    Raises:
        BehaviourLogProbError: when a behaviour log-probability is NaN or infinite, with how many are, and of how many.
        AnchorError: when a recomputed pi_old is not a number where pi and mu are.
        TopKError: when a token's Top-K log-probabilities are another token's.
    """
    if not statistics.behaviour_is_finite:
        log_behaviour = inputs.old_log_prob if inputs.log_behaviour is None else inputs.log_behaviour
        mask, is_broken = inputs.response_mask.bool(), ~log_behaviour.isfinite()
        raise BehaviourLogProbError(
            f"{int((is_broken & mask).sum())} of {int(mask.sum())} response tokens of this micro-batch "
            f"({int(is_broken.sum())} positions in all) have a rollout log-probability that is NaN or infinite. "
            "Their gradient would be wrong, so the step is refused; look at the rollout engine's logs."
        )
    distance, from_anchor = (statistics.sums.get(name, 0.0) for name in (ABS_PROB_DIFF_MEAN, ANCHOR_ABS_PROB_DIFF_MEAN))
    if math.isfinite(distance) and not math.isfinite(from_anchor):
        raise AnchorError(
            "a response token of this micro-batch has no log-probability under the recomputed pi_old: it was not among "
            "the samples that were scored before the first update. Set algorithm.rollout_correction.bypass_mode=False, "
            "with which verl recomputes all of them."
        )
    if inputs.partition_divergence is not None:
        require_divergence(statistics.sums[PARTITION_DIVERGENCE])


def policy_loss(
    mode: str,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """One of our objectives with the signature of verl's policy losses, for callers of verl's registry.

    verl's own actor trains with ``drpo_verl.adapters.actor_loss.TrustRegionLoss`` instead, whose metrics are exact over
    the whole step, and which has what Top-K, recomputed anchors and adaptive thresholds need.

    Args:
        mode: a name in ``OBJECTIVES``.
        old_log_prob: log mu, ``[B, T]``.
        log_prob: log pi, ``[B, T]``.
        advantages: A, ``[B, T]``.
        response_mask: response tokens, ``[B, T]``.
        loss_agg_mode: as verl's ``agg_loss`` has it.
        config: verl's ``ActorConfig``, whose ``policy_loss`` is a ``TrustRegionLossConfig``.
        rollout_is_weights: detached importance weights, ``[B, T]``, or None.
        **_: what later versions of verl pass as well.

    Returns:
        The scalar loss, and metrics: means over this micro-batch's tokens, and extrema.

    Raises:
        SeamError: when ``config.policy_loss`` is not ours, or the objective needs more than these arguments.
        BehaviourLogProbError: when a behaviour log-probability is NaN or infinite, with their number.
    """
    settings = getattr(config, "policy_loss", None)
    if not isinstance(settings, TrustRegionLossConfig):
        raise SeamError(
            f"loss_mode={mode!r} was set without its configuration "
            f"(policy_loss is {type(settings).__name__}): start the run with +method={mode}."
        )
    if OBJECTIVES[settings.loss_mode].adaptive:
        raise SeamError(f"loss_mode={mode!r} moves its threshold after each step, which only our training worker does.")
    inputs = LossInputs(log_prob, old_log_prob, advantages, response_mask, rollout_is_weights)
    loss, verl_metrics, accumulators = trust_region_loss(config, inputs, loss_agg_mode)
    statistics = accumulators.to_host()
    require_usable(statistics, inputs)
    return loss, {**verl_metrics, **statistics.metrics()}


def register() -> None:
    """Put every objective into verl's registry under its own name, those that are added to the table later included.

    Raises:
        SeamError: when a name is already taken by someone else's loss, which verl would overwrite silently, or when
            a loss of verl's that a baseline uses is missing.
    """
    expect_parameters(agg_loss, "core_algos.agg_loss", "loss_mat", "loss_mask", "loss_agg_mode", "dp_size")
    for_each_objective(_register)


def _register(mode: str, objective: Objective) -> None:
    taken = POLICY_LOSS_REGISTRY.get(mode)
    # By name: a module that is imported twice, after an import that failed, has another function of the same name.
    function = getattr(taken, "func", None)
    is_ours = (
        getattr(function, "__module__", None) == __name__ and getattr(function, "__qualname__", None) == "policy_loss"
    )
    if taken is not None and not is_ours:
        raise SeamError(f"the loss mode {mode!r} is already registered, by {taken!r}")
    if objective.verl_loss is not None and objective.verl_loss not in POLICY_LOSS_REGISTRY:
        raise SeamError(f"verl has no loss mode {objective.verl_loss!r}, which {mode!r} is")
    register_policy_loss(mode)(partial(policy_loss, mode))


register()

"""The objectives as policy losses in verl's registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, get_policy_loss_fn, register_policy_loss

from drpo_verl.adapters.config import TrustRegionLossConfig, verl_region
from drpo_verl.adapters.top_k import require_divergence
from drpo_verl.losses import OBJECTIVES, TokenStatistics, token_loss
from drpo_verl.losses.statistics import PARTITION
from drpo_verl.seams import SeamError, expect_parameters


class BehaviourLogProbError(ValueError):
    """The rollout engine's log-probabilities are missing from a batch, or are not numbers."""


@dataclass(frozen=True)
class Beside:
    """What some objectives need of a micro-batch and verl's ``ppo_loss`` does not hand on.

    Attributes:
        log_behaviour: log mu, ``[B, T]``, where ``old_log_prob`` is a recomputed pi_old.
        partition_divergence: D over the Top-K partition, ``[B, T]``.
        delta: the threshold now, where a controller moves it.
    """

    log_behaviour: Tensor | None = None
    partition_divergence: Tensor | None = None
    delta: float | None = None


_NOTHING = Beside()
_beside: ContextVar[Beside] = ContextVar("drpo_verl_beside", default=_NOTHING)


@contextmanager
def beside(inputs: Beside) -> Iterator[None]:
    """Hand ``inputs`` to the ``policy_loss`` that is called within."""
    token = _beside.set(inputs)
    try:
        yield
    finally:
        _beside.reset(token)


_TOKENS = "trust_region/tokens_per_micro_batch"


class _CountWithStatistics(float):
    """The token count of a micro-batch as verl's metrics want it, with everything that was counted attached.

    verl keeps the values of a metric as they are until it averages them, so what is attached here reaches
    ``take_statistics``; where nothing takes it, it is a number like any other.
    """

    statistics: TokenStatistics

    @classmethod
    def of(cls, statistics: TokenStatistics) -> _CountWithStatistics:
        count = cls(statistics.tokens)
        count.statistics = statistics
        return count


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
    """One of our objectives with the signature of verl's policy losses.

    Args:
        mode: a name in ``OBJECTIVES``.
        old_log_prob: the anchor, which bypass mode makes the rollout engine's log mu, ``[B, T]``.
        log_prob: log pi, ``[B, T]``.
        advantages: A, ``[B, T]``.
        response_mask: response tokens, ``[B, T]``.
        loss_agg_mode: as verl's ``agg_loss`` has it.
        config: verl's ``ActorConfig``, whose ``policy_loss`` is a ``TrustRegionLossConfig``.
        rollout_is_weights: detached importance weights, ``[B, T]``, or None.
        **_: what later versions of verl pass as well.

    Returns:
        The scalar loss, and metrics: means over this micro-batch's tokens, and, for ``take_statistics``, what
        they are the means of.

    Raises:
        SeamError: when ``config.policy_loss`` is not ours, or an objective lacks what it needs beside verl's arguments.
        BehaviourLogProbError: when a behaviour log-probability is NaN or infinite, with their number.
        TopKError: when a token's Top-K log-probabilities are another token's.
    """
    settings = getattr(config, "policy_loss", None)
    if not isinstance(settings, TrustRegionLossConfig):
        raise SeamError(
            f"loss_mode={mode!r} was set without its configuration "
            f"(policy_loss is {type(settings).__name__}): start the run with +method={mode}."
        )
    objective, inputs = settings.objective(), _beside.get()
    if objective.recomputed_anchor and inputs.log_behaviour is None:
        raise SeamError(f"loss_mode={mode!r} needs the rollout log-probabilities beside the recomputed ones.")
    log_behaviour = old_log_prob if inputs.log_behaviour is None else inputs.log_behaviour
    tokens = token_loss(
        objective,
        verl_region(config) if objective.verl_loss else settings.region(inputs.delta),
        log_prob,
        log_behaviour,
        advantages,
        response_mask,
        rollout_is_weights,
        log_anchor=None if inputs.log_behaviour is None else old_log_prob,
        partition_divergence=inputs.partition_divergence,
        instruments=settings.instruments,
    )
    statistics = tokens.accumulators.to_host()
    require_finite_behaviour(statistics, log_behaviour, response_mask)
    if inputs.partition_divergence is not None:
        require_divergence(statistics.sums[PARTITION])
    verls: dict[str, Any] = {}
    if objective.verl_loss is None:
        # The mask as a float: multiplied by a bool tensor, the loss is converted once more, forward and backward.
        loss = agg_loss(
            loss_mat=tokens.loss, loss_mask=tokens.is_token, loss_agg_mode=loss_agg_mode, **config.global_batch_info
        )
    else:
        # The baseline is verl's own, to the last digit; ours only says what it did.
        loss, verls = get_policy_loss_fn(objective.verl_loss)(
            old_log_prob=old_log_prob,
            log_prob=log_prob,
            advantages=advantages,
            response_mask=response_mask,
            loss_agg_mode=loss_agg_mode,
            config=config,
            rollout_is_weights=rollout_is_weights,
        )
    return loss, {**verls, **statistics.metrics(), _TOKENS: _CountWithStatistics.of(statistics)}


def require_finite_behaviour(statistics: TokenStatistics, log_behaviour: Tensor, mask: Tensor) -> None:
    """Refuse a batch whose behaviour log-probabilities are not all numbers.

    Raises:
        BehaviourLogProbError: with how many are not, and of how many.
    """
    if statistics.behaviour_is_finite:
        return
    broken = ~log_behaviour.isfinite()
    raise BehaviourLogProbError(
        f"{int((broken & mask.bool()).sum())} of {int(mask.sum())} response tokens of this micro-batch "
        f"({int(broken.sum())} positions in all) have a rollout log-probability that is NaN or infinite. "
        "Their gradient would be wrong, so the step is refused; look at the rollout engine's logs."
    )


def take_statistics(metrics: dict[str, Any]) -> TokenStatistics | None:
    """Take a micro-batch's statistics out of the metrics that verl's ``ppo_loss`` made of ``policy_loss``'s.

    The means over the micro-batch go with them: averaged again by verl, they would not be means over tokens.

    Returns:
        The statistics, or None when the loss was not one of ours.
    """
    carrier = metrics.pop(_TOKENS, None)
    if carrier is None:
        return None
    (count,) = carrier.values
    for name in count.statistics.metrics():
        del metrics[name]
    return count.statistics


def register() -> None:
    """Put every objective into verl's registry under its own name.

    Raises:
        SeamError: when the name is already taken by someone else's loss, which verl would overwrite silently, or when
            a loss of verl's that a baseline uses is missing.
    """
    expect_parameters(agg_loss, "core_algos.agg_loss", "loss_mat", "loss_mask", "loss_agg_mode", "dp_size")
    for mode, objective in OBJECTIVES.items():
        taken = POLICY_LOSS_REGISTRY.get(mode)
        if taken is not None and getattr(taken, "func", None) is not policy_loss:
            raise SeamError(f"the loss mode {mode!r} is already registered, by {taken!r}")
        if objective.verl_loss is not None and objective.verl_loss not in POLICY_LOSS_REGISTRY:
            raise SeamError(f"verl has no loss mode {objective.verl_loss!r}, which {mode!r} is")
        register_policy_loss(mode)(partial(policy_loss, mode))


register()

"""The actor's training worker: verl's own, with token statistics that are exact over the whole step.

verl averages a loss's metrics over micro-batches and ranks without weights, and has no maximum over them. This
worker carries sums and extrema instead, and divides once, when a step's micro-batches, mini-batches and ranks
have come together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from drpo_verl.integration.config import TrustRegionLossConfig
from drpo_verl.integration.policy_loss import BehaviourLogProbError, require_finite_behaviour, take_statistics
from drpo_verl.integration.seams import expect, expect_parameters
from drpo_verl.objectives import OBJECTIVES, TokenRatio, TokenStatistics, mismatch_accumulators

_STATISTICS = "drpo_verl/statistics"
_ROLLOUT = "rollout_log_probs"


class TrustRegionTrainingWorker(TrainingWorker):
    """verl's ``TrainingWorker`` for an actor; does nothing unless its policy loss is configured by ours."""

    def set_loss_fn(self, loss_fn: Callable[..., Any]) -> None:
        """Wrap verl's PPO loss, when the policy loss that it will call is one of ours."""
        settings = getattr(loss_fn, "keywords", {}).get("config")
        if getattr(loss_fn, "func", None) is ppo_loss and isinstance(
            getattr(settings, "policy_loss", None), TrustRegionLossConfig
        ):
            loss_fn = partial(trust_region_loss, config=settings)
        super().set_loss_fn(loss_fn)

    def train_mini_batch(self, data: TensorDict) -> TensorDict | None:
        """Train on the mini-batches of one step, then turn its statistics into metrics."""
        output = super().train_mini_batch(data)
        if output is not None:
            metrics: dict[str, Any] = tensordict_utils.get(output, "metrics")
            parts = metrics.pop(_STATISTICS, None)
            if parts:
                metrics.update({name: [value] for name, value in TokenStatistics.merge(parts).metrics().items()})
        return output


def trust_region_loss(
    config: ActorConfig, model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """verl's ``ppo_loss``, with the statistics of its tokens kept whole.

    Args:
        config: the actor's, with our policy-loss section.
        model_output: log-probabilities of one micro-batch, as the engine gives them.
        data: the micro-batch.
        dp_group: the data-parallel group.

    Returns:
        The scalar loss, and verl's metrics together with a ``TokenStatistics``.

    Raises:
        BehaviourLogProbError: when rollout log-probabilities are missing or not numbers.
    """
    if config.policy_loss.loss_mode in OBJECTIVES:
        _require_behaviour(data)
    loss, metrics = ppo_loss(config=config, model_output=model_output, data=data, dp_group=dp_group)
    statistics = take_statistics(metrics)
    if statistics is None and _ROLLOUT in data:
        # verl's own loss, the baseline: it has no trust region, but a mismatch all the same.
        statistics = _mismatch(model_output, data)
    if statistics is not None:
        metrics[_STATISTICS] = statistics
    return loss, metrics


def _positions(tensor: Tensor) -> int:
    # The V1 trainer's are nested; the legacy trainer's, padded.
    return int(tensor.values().numel() if tensor.is_nested else tensor.numel())


def _require_behaviour(data: TensorDict) -> None:
    field = _ROLLOUT if _ROLLOUT in data else "old_log_probs"  # the same in bypass mode, which our losses require
    tokens = _positions(data["response_mask"])
    present = _positions(data[field]) if field in data else 0
    if present != tokens:
        raise BehaviourLogProbError(
            f"{present} rollout log-probabilities for {tokens} response positions of this micro-batch: every "
            "sampled token needs one. Set actor_rollout_ref.rollout.calculate_log_probs=True, and look at whether "
            "the agent loop returns response_logprobs."
        )


def _mismatch(model_output: dict[str, Tensor], data: TensorDict) -> TokenStatistics:
    padded = data.select("response_mask", _ROLLOUT).to_padded_tensor()
    is_token, log_mu = padded["response_mask"].float(), padded[_ROLLOUT].float()
    with torch.no_grad(), torch.autocast(device_type=log_mu.device.type, enabled=False):
        log_pi = no_padding_2_padding(model_output["log_probs"], data).float()
        tokens = TokenRatio.of(log_pi * is_token, log_mu * is_token)
        statistics = mismatch_accumulators(tokens, is_token).to_host()
    require_finite_behaviour(statistics, log_mu, is_token)
    return statistics


def register() -> None:
    """Make verl's actor use the worker.

    Raises:
        SeamError: when verl's worker is not as expected.
    """
    current = getattr(ActorRolloutRefWorker, "actor_worker_cls", None)
    expect(
        current in (TrainingWorker, TrustRegionTrainingWorker),
        "ActorRolloutRefWorker.actor_worker_cls",
        f"verl's TrainingWorker, found {current!r}",
    )
    expect_parameters(TrainingWorker.set_loss_fn, "TrainingWorker.set_loss_fn", "loss_fn")
    expect_parameters(TrainingWorker.train_mini_batch, "TrainingWorker.train_mini_batch", "data")
    expect_parameters(ppo_loss, "ppo_loss", "config", "model_output", "data", "dp_group")
    ActorRolloutRefWorker.actor_worker_cls = TrustRegionTrainingWorker


register()

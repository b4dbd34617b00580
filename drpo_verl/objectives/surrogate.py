"""From log-probabilities and advantages to the per-token loss, its gradient and its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drpo_verl.objectives.family import Objective, TrustRegion
from drpo_verl.objectives.geometry import TokenRatio
from drpo_verl.objectives.statistics import TokenAccumulators, mismatch_accumulators, region_accumulators


@dataclass(frozen=True)
class TokenLoss:
    """The negated objective of each token, and what was seen on the way.

    Attributes:
        loss: ``[B, T]`` fp32; its derivative with respect to log pi is ``-A min(r, C) w`` (times the importance
            weight, if any). What stands where the mask is 0 is finite, and for the aggregation to leave out.
        accumulators: sums, extrema and counts over the tokens, still on the device.
    """

    loss: Tensor
    accumulators: TokenAccumulators


def token_loss(
    objective: Objective,
    region: TrustRegion,
    log_policy: Tensor,
    log_behaviour: Tensor,
    advantages: Tensor,
    mask: Tensor,
    importance_weight: Tensor | None = None,
) -> TokenLoss:
    """The loss of one objective on one micro-batch.

    Ratio, divergence and weight are computed in fp32 and without a graph, whatever autocast surrounds the
    call; autograd sees a single multiplication, for which one ``[B, T]`` tensor is saved.

    Args:
        objective: a row of ``OBJECTIVES``.
        region: its thresholds.
        log_policy: log pi(y_t | s_t), ``[B, T]``, with the graph of the forward pass.
        log_behaviour: log mu(y_t | s_t) as the rollout engine reported it, ``[B, T]``.
        advantages: A_t, ``[B, T]``.
        mask: which positions are response tokens, ``[B, T]``, bool or 0/1. Elsewhere the
            log-probabilities count for nothing, but must be finite.
        importance_weight: a detached factor for each token, ``[B, T]``, or None.

    Returns:
        The per-token loss and the accumulators of its statistics.
    """
    with torch.autocast(device_type=log_policy.device.type, enabled=False):
        log_policy = log_policy.float()
        with torch.no_grad():
            is_token = mask.float()
            # 0 and 0 elsewhere: a ratio of 1 and no divergence, so that padding adds nothing below.
            tokens = TokenRatio.of(log_policy * is_token, log_behaviour.float() * is_token)
            advantages = advantages.float()
            direction = advantages.sign()

            excess = _excess(objective.geometry(tokens), direction, region)
            weight = objective.enforcement.weight(excess)
            scale = -advantages
            if importance_weight is not None:
                scale *= importance_weight.float()
            if region.ratio_cap is not None:
                scale *= (region.ratio_cap / tokens.ratio).clamp_(max=1.0)  # truncated importance sampling
            value = objective.enforcement.value(tokens, excess, weight).mul_(scale)
            coefficient = scale.mul_(tokens.ratio).mul_(weight)
            if region.ratio_cap is None:
                # The gradient of the clamped log-ratio. A truncated ratio is bounded, and keeps its gradient.
                coefficient.addcmul_(coefficient, tokens.clamped(), value=-1.0)

            accumulators = mismatch_accumulators(tokens, is_token) | region_accumulators(
                objective.enforcement, weight, excess, direction, is_token
            )
        loss = _Linearised.apply(log_policy, value, coefficient)
    return TokenLoss(loss, accumulators)


def _excess(divergence: Tensor, direction: Tensor, region: TrustRegion) -> Tensor:
    """sign(A) D / delta, with the threshold of the direction in which pi has moved."""
    excess = direction * divergence
    if region.delta_low == region.delta_high:
        return excess.mul_(1.0 / region.delta_high)
    return excess.div_(torch.where(divergence > 0, region.delta_high, region.delta_low))


class _Linearised(torch.autograd.Function):
    """A tensor with a given value and a given derivative with respect to log pi."""

    @staticmethod
    def forward(ctx: Any, log_policy: Tensor, value: Tensor, derivative: Tensor) -> Tensor:
        ctx.save_for_backward(derivative)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return grad_outputs[0] * derivative, None, None

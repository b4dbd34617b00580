"""From log-probabilities and advantages to the per-token loss, its gradient and its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drpo_verl.losses.diagnostics import vectors
from drpo_verl.losses.enforcement import Reach
from drpo_verl.losses.geometry import Geometry, TokenRatio, where_above
from drpo_verl.losses.statistics import TokenAccumulators, mismatch_accumulators, region_accumulators
from drpo_verl.losses.table import Objective, TrustRegion

_SMALLEST_ADVANTAGE = 1e-2
"""An unweighted penalty's w has A in its denominator; below this, w is logged as if A were this."""


@dataclass(frozen=True)
class TokenLoss:
    """The negated objective of each token, and what was seen on the way.

    Attributes:
        loss: ``[B, T]`` fp32; its derivative with respect to log pi is ``-A min(r, C) w`` (times the importance
            weight, if any), and with a cap that is its value too. 0 where the mask is.
        is_token: the mask as it was used, ``[B, T]`` fp32, 0 or 1.
        accumulators: sums, extrema and counts over the tokens, still on the device.
    """

    loss: Tensor
    is_token: Tensor
    accumulators: TokenAccumulators


def token_loss(
    objective: Objective,
    region: TrustRegion,
    log_policy: Tensor,
    log_behaviour: Tensor,
    advantages: Tensor,
    mask: Tensor,
    importance_weight: Tensor | None = None,
    *,
    log_anchor: Tensor | None = None,
    partition_divergence: Tensor | None = None,
    instruments: bool = True,
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
        mask: which positions are response tokens, ``[B, T]``, bool or 0/1. Elsewhere, what the other arguments hold
            counts for nothing.
        importance_weight: a detached factor for each token, ``[B, T]``, or None.
        log_anchor: what the distance is measured from, ``[B, T]``, where that is not mu.
        partition_divergence: D over the Top-K partition, ``[B, T]``, >= 0, for an objective that needs it.
        instruments: whether to measure moments and histograms of the tokens as well.

    Returns:
        The per-token loss and the accumulators of its statistics.

    Raises:
        ValueError: when an objective that needs it gets no ``partition_divergence``.
    """
    with torch.autocast(device_type=log_policy.device.type, enabled=False):
        log_policy = log_policy.float()
        with torch.no_grad():
            # Bytes convert several times faster than bools on a CPU.
            is_token = (mask.view(torch.uint8) if mask.dtype == torch.bool else mask).float()
            # 0 and 0 elsewhere: a ratio of 1 and no divergence, so that padding adds nothing below.
            log_pi = where_above(log_policy, is_token, 0.0)
            if partition_divergence is not None:
                partition_divergence = where_above(partition_divergence.float(), is_token, 0.0)
            tokens = TokenRatio.of(log_pi, where_above(log_behaviour.float(), is_token, 0.0), partition_divergence)
            measured = tokens
            if log_anchor is not None:
                measured = TokenRatio.of(log_pi, where_above(log_anchor.float(), is_token, 0.0), partition_divergence)
            advantages = where_above(advantages.float(), is_token, 0.0)
            direction = advantages.sign()

            reach = _reach(objective, region, measured, advantages, direction)
            allowed = _restricted(reach, region, direction)
            weight = objective.enforcement.weight(allowed)
            if region.dual_clip is not None:
                weight -= where_above(where_above(weight, measured.ratio, region.dual_clip), -direction, 0.0)

            scale = advantages.neg_()
            if importance_weight is not None:
                importance_weight = where_above(importance_weight.float(), is_token, 0.0)
                scale *= importance_weight
            if region.ratio_cap is not None:
                scale *= (region.ratio_cap / tokens.ratio).clamp_(max=1.0)  # truncated importance sampling
            unweighted = (scale * tokens.ratio).abs_() if instruments else None
            truncated = region.ratio_cap is not None and not objective.enforcement.detached
            if region.advantage_weighted and truncated:
                value = coefficient = scale.mul_(tokens.ratio).mul_(weight)  # constant, but for grad log pi
            elif region.advantage_weighted:
                value = objective.enforcement.value(tokens, allowed, weight).mul_(scale)
                coefficient = scale.mul_(tokens.ratio).mul_(weight)
            else:
                value, coefficient = _unweighted(objective.geometry, region, tokens, scale, importance_weight)
            if region.ratio_cap is None and not objective.enforcement.detached:
                # The gradient of the clamped log-ratio. A truncated ratio is a constant, and keeps its gradient.
                coefficient = tokens.through_the_clamp_(coefficient)

            accumulators = mismatch_accumulators(measured, tokens, is_token) | region_accumulators(
                objective.enforcement, weight, reach, direction, is_token, unweighted
            )
            if instruments:
                accumulators |= TokenAccumulators(vectors=vectors(tokens, direction, is_token))
        loss = _Linearised.apply(log_policy, value, coefficient)
    return TokenLoss(loss, is_token, accumulators)


def _reach(
    objective: Objective, region: TrustRegion, tokens: TokenRatio, advantages: Tensor, direction: Tensor
) -> Reach:
    """Distance, gate and penalty in units of their thresholds, times sign(A)."""
    distance = objective.geometry.distance(tokens)
    per_threshold = _per_threshold(region, distance, direction)
    if not region.advantage_weighted:
        per_threshold = per_threshold / advantages.abs().clamp_(min=_SMALLEST_ADVANTAGE)
    excess = distance * per_threshold
    gate = excess
    if objective.gate is not None:
        gate = (objective.gate.distance(tokens) * direction).mul_(1.0 / region.region_delta)
    penalty = None
    if objective.enforcement.attenuates and objective.geometry.penalty is not None:
        penalty = objective.geometry.penalty(tokens, distance, per_threshold, excess)
    return Reach(excess, gate, penalty)


def _per_threshold(region: TrustRegion, distance: Tensor, direction: Tensor | float) -> Tensor:
    """``direction`` / delta, with the threshold of the direction in which pi has moved."""
    if region.delta_low == region.delta_high:
        return torch.as_tensor(direction * (1.0 / region.delta_high), device=distance.device)
    return direction / torch.where(distance > 0, region.delta_high, region.delta_low)


def _restricted(reach: Reach, region: TrustRegion, direction: Tensor) -> Reach:
    if region.restrict_to is None:
        return reach
    sign = direction if region.restrict_to == "positive" else -direction
    return Reach(reach.excess, where_above(reach.gate, sign, 0.0), reach.penalty)


def _unweighted(
    geometry: Geometry, region: TrustRegion, tokens: TokenRatio, scale: Tensor, importance_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """-(r A - P / delta) and its derivative, -(r A - r D / delta): the penalty acts where A = 0 too."""
    distance = geometry.distance(tokens)
    per_threshold = _per_threshold(region, distance, 1.0)
    if importance_weight is not None:
        per_threshold = per_threshold * importance_weight
    if geometry.penalty is None:
        raise ValueError("a penalty that is not weighted by abs(A) needs a geometry with a penalty")
    scaled = distance * per_threshold
    value = tokens.ratio * scale + geometry.penalty(tokens, distance, per_threshold, scaled).mul_(0.5)
    coefficient = tokens.ratio * (scale + scaled)
    return value, coefficient


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

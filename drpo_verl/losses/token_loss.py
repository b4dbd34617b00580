"""From log-probabilities and advantages to the per-token loss, its gradient and its statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drpo_verl.losses.diagnostics import measure_histograms, measure_moments
from drpo_verl.losses.enforcement import Penalty, TrustRegionDistance
from drpo_verl.losses.geometry import LOG_RATIO_BOUND, Geometry, TokenRatio
from drpo_verl.losses.offpolicy import measure_responses
from drpo_verl.losses.scope import Step
from drpo_verl.losses.sequence_mask import SequenceMask
from drpo_verl.losses.statistics import TokenAccumulators, measure_mismatch, measure_trust_region
from drpo_verl.losses.table import Objective, TrustRegion
from drpo_verl.metrics import names

_SMALLEST_ADVANTAGE = 1e-2
"""An unweighted penalty's w has A in its denominator; below this, w is logged as if A were this."""


@dataclass(frozen=True)
class TokenLoss:
    """The negated objective of each token, and what was measured on the way.

    Attributes:
        loss: ``[B, T]`` fp32; its derivative with respect to log pi is ``-A min(r, C) w`` (times the importance
            weight, if any), and with a cap that is its value too. 0 where the mask is.
        mask: 1 for response tokens and 0 elsewhere, ``[B, T]`` uint8, for whoever aggregates the loss: products with it
            are faster than with bools, and it takes a quarter of fp32's memory until the backward pass.
        accumulators: sums, extrema and histograms over the tokens, still on the device.
        kept: 1 for each response that a sequence mask keeps, else 0, ``[B, 1]``; None without a mask.
    """

    loss: Tensor
    mask: Tensor
    accumulators: TokenAccumulators
    kept: Tensor | None = None


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
    partition_derivative: Tensor | None = None,
    sequence_mask: SequenceMask | None = None,
    diagnostics: bool = True,
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
        partition_derivative: its derivative along the sampled token's gradient, ``[B, T]``, for a direction that needs
            it.
        sequence_mask: which responses to leave out. Each row has to be a whole response then, as for a scope other than
            a token's own.
        diagnostics: whether to measure moments and histograms of the tokens as well.

    Returns:
        The per-token loss and the accumulators of its statistics.

    Raises:
        ValueError: when an objective that needs it gets no ``partition_divergence``.
    """
    with torch.autocast(device_type=log_policy.device.type, enabled=False):
        log_policy = log_policy.float()
        with torch.no_grad():
            is_response = mask.bool()  # to choose by
            mask = is_response.view(torch.uint8)
            is_token = mask.float()  # for sums and products

            def of_tokens(values: Tensor) -> Tensor:
                # 0 elsewhere: a ratio of 1 and no divergence, so that padding adds nothing to any sum below.
                return torch.where(is_response, values.float(), 0.0)

            log_pi, advantage = of_tokens(log_policy), of_tokens(advantages)
            partition = [
                None if values is None else of_tokens(values) for values in (partition_divergence, partition_derivative)
            ]
            tokens = TokenRatio.of(log_pi, of_tokens(log_behaviour), *partition)
            measured, staleness = tokens, None
            if log_anchor is not None:
                measured = TokenRatio.of(log_pi, of_tokens(log_anchor), *partition)
                # pi_old / mu, which may be as small as it is: times P, that is of the size of the ratio.
                staleness = torch.exp((measured.log_mu - tokens.log_mu).clamp(max=LOG_RATIO_BOUND))

            advantage_sign = advantage.sign()
            accumulators = _distances_of_policies(measured, tokens, advantage_sign, is_token, diagnostics)
            distance = _distance(objective, region, measured, advantage, advantage_sign, is_token, staleness)
            enforced = _restricted(distance, region, advantage_sign)
            weight = objective.enforcement.weight(enforced)
            if region.dual_clip is not None:
                weight = torch.where((advantage_sign < 0) & (measured.ratio > region.dual_clip), 0.0, weight)

            scale = advantage.neg_()  # the loss is the negated objective
            if importance_weight is not None:
                importance_weight = of_tokens(importance_weight)
                scale = scale * importance_weight
            ratio, truncated = tokens.ratio, False
            if region.ratio_cap is not None:  # truncated importance sampling
                ratio, truncated = ratio.clamp(max=region.ratio_cap), not objective.enforcement.detached
            unrestrained = scale * ratio  # the gradient where w = 1
            if not region.advantage_weighted:
                loss, gradient = _unweighted_penalty(
                    objective.geometry, region, measured, unrestrained, importance_weight, staleness
                )
            else:
                gradient = unrestrained * weight
                loss = gradient  # a truncated ratio is held constant, a coefficient of grad log pi
                if objective.enforcement.value is not None and not truncated:
                    loss = objective.enforcement.value(tokens, ratio, enforced, weight).mul_(scale)
            if region.ratio_cap is None and not objective.enforcement.detached:
                gradient = gradient * tokens.is_within_bound
            kept = None if sequence_mask is None else sequence_mask.kept(tokens, is_token)
            if kept is not None:
                loss, gradient = loss * kept, gradient * kept
                weight = torch.where(is_response, weight * kept, 1.0)
            if region.log_ratio_penalty is not None:
                pull = region.log_ratio_penalty * tokens.unclamped_log_ratio
                loss, gradient = torch.addcmul(loss, pull, tokens.unclamped_log_ratio), gradient + 2.0 * pull

            accumulators |= measure_trust_region(
                objective.enforcement,
                objective.direction,
                weight,
                distance,
                advantage_sign,
                is_token,
                unrestrained if diagnostics else None,
            )
            if kept is not None:
                accumulators |= TokenAccumulators(sums={names.SEQUENCE_MASKED: (is_token * (1.0 - kept)).sum()})
        return TokenLoss(_WithGradient.apply(log_policy, loss, gradient), mask, accumulators, kept)


def _distances_of_policies(
    measured: TokenRatio, tokens: TokenRatio, advantage_sign: Tensor, is_token: Tensor, diagnostics: bool
) -> TokenAccumulators:
    """What is measured of pi, mu and the anchor, whatever the objective makes of them."""
    accumulators = measure_mismatch(measured, tokens, is_token)
    if not diagnostics:
        return accumulators
    return accumulators | TokenAccumulators(
        moments=measure_moments(tokens, is_token) | measure_responses(tokens.unclamped_log_ratio, is_token),
        histograms=measure_histograms(tokens, advantage_sign, is_token),
    )


def _distance(
    objective: Objective,
    region: TrustRegion,
    tokens: TokenRatio,
    advantage: Tensor,
    advantage_sign: Tensor,
    is_token: Tensor,
    staleness: Tensor | None,
) -> TrustRegionDistance:
    """Distance, mask criterion and penalty in units of their thresholds; the penalty times pi_old / mu, if any."""
    direction, distance = objective.direction, objective.geometry.distance(tokens)
    threshold = _threshold(region, distance)
    if objective.scope is not None:
        sense = direction.sense(tokens, distance, advantage_sign, is_token)
        size = tokens.abs_prob_diff if distance is tokens.prob_diff else distance.abs()  # measured in any case
        step = Step(size, sense, threshold, is_token, objective.enforcement.attenuates, region.prefix_budget)
        normalized = objective.scope.normalized(step)
        return TrustRegionDistance(normalized, normalized)
    if not region.advantage_weighted:
        threshold = threshold * advantage.abs().clamp(min=_SMALLEST_ADVANTAGE)
    if not objective.enforcement.attenuates or objective.geometry.penalty is None:
        normalized = direction.signed(tokens, distance, advantage_sign) / threshold
        return TrustRegionDistance(normalized, normalized)
    normalized = criterion = (distance * advantage_sign).div_(threshold)  # no other direction goes with a penalty
    if objective.mask_geometry is not None:
        mask_distance = objective.mask_geometry.distance(tokens)
        criterion = direction.signed(tokens, mask_distance, advantage_sign) / region.region_delta
    penalty = _penalty(objective.geometry, tokens, normalized, advantage_sign, threshold, staleness)
    return TrustRegionDistance(normalized, criterion, penalty)


def _penalty(
    geometry: Geometry,
    tokens: TokenRatio,
    normalized: Tensor,
    advantage_sign: Tensor,
    threshold: Tensor | float,
    staleness: Tensor | None,
) -> Penalty:
    """P sign(A) / delta, times pi_old / mu where D is measured from pi_old."""
    assert geometry.penalty is not None
    number, first, second = geometry.penalty_factor, normalized, tokens.ratio_minus_one
    if number is None:
        number, first, second = 1.0, geometry.penalty(tokens), advantage_sign / threshold
    return Penalty(number, first if staleness is None else first * staleness, second)


def _threshold(region: TrustRegion, distance: Tensor) -> Tensor | float:
    """delta, of the direction in which pi has moved."""
    if region.delta_low == region.delta_high:
        return region.delta_high
    return torch.full_like(distance, region.delta_low).masked_fill(distance > 0, region.delta_high)


def _restricted(distance: TrustRegionDistance, region: TrustRegion, advantage_sign: Tensor) -> TrustRegionDistance:
    """The distance as the enforcement gets it: tokens whose advantage has the other sign count as inside."""
    if region.restrict_to is None:
        return distance
    may_be_outside = advantage_sign > 0 if region.restrict_to == "positive" else advantage_sign < 0
    return replace(distance, mask_criterion=torch.where(may_be_outside, distance.mask_criterion, 0.0))


def _unweighted_penalty(
    geometry: Geometry,
    region: TrustRegion,
    tokens: TokenRatio,
    unrestrained: Tensor,
    importance_weight: Tensor | None,
    staleness: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loss -(r A - P / delta) and its derivative -(r A - r D / delta): the penalty acts where A = 0 too."""
    if geometry.penalty is None:
        raise ValueError("a penalty that is not weighted by abs(A) needs a geometry with a penalty")
    distance = geometry.distance(tokens)
    penalty_scale = 1.0 / _threshold(region, distance)
    if importance_weight is not None:
        penalty_scale = penalty_scale * importance_weight
    if staleness is not None:
        penalty_scale = penalty_scale * staleness
    loss = unrestrained + geometry.penalty(tokens) * penalty_scale
    return loss, unrestrained + tokens.ratio * distance * penalty_scale


class _WithGradient(torch.autograd.Function):
    """A tensor with a given value and a given derivative with respect to log pi; saves the derivative alone."""

    @staticmethod
    def forward(ctx: Any, log_policy: Tensor, value: Tensor, derivative: Tensor) -> Tensor:
        ctx.save_for_backward(derivative)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return grad_outputs[0] * derivative, None, None

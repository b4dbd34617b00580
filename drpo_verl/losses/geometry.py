"""Geometries: how far pi is from mu at a sampled token, signed by the direction of the move.

All of them are elementwise on ``[B, T]`` fp32 tensors, positive where pi > mu and negative where pi < mu.
Each keeps its digits near p = 1 and p -> 0, where ``exp(a) - exp(b)`` and ``log(1 - p)`` lose them in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drpo_verl.losses.partition import Divergence, kullback_leibler, total_variation

LOG_RATIO_BOUND = 20.0
"""log r is clamped to +-20, as in the reference code of both papers; uncapped, its gradient is zero beyond."""

_MIN_REST = 1e-12
"""Floor of 1 - pi in the KL: pi rounds to exactly 1 in fp32, which must not make the KL infinite."""

_LARGEST_KL = 1e30
"""Finite, so that it is 0 times an advantage of 0."""

_NEXT_BEYOND_BOUND = LOG_RATIO_BOUND + 2e-6
"""The fp32 number after the bound: the gradient of a clamp is 1 at the bound itself."""


def where_above(values: Tensor, x: Tensor, threshold: float, out: Tensor | None = None) -> Tensor:
    """``values`` where ``x > threshold``, else 0: in one pass, where a bool tensor costs a CPU several times more.

    Args:
        values: ``[B, T]``.
        x: of the same shape.
        threshold: which ``x`` has to exceed.
        out: where to write it. (A new tensor of this size costs a CPU more than what is computed into it.)
    """
    if out is None:
        return torch.ops.aten.threshold_backward(values, x, threshold)
    return torch.ops.aten.threshold_backward.grad_input(values, x, threshold, grad_input=out)


@dataclass(frozen=True)
class TokenRatio:
    """What every geometry is computed from; each field ``[B, T]`` fp32, without a graph.

    Attributes:
        log_mu: log mu(y_t | s_t), the sampled token's log-probability under the policy that pi is measured against.
        log_pi: log pi(y_t | s_t), its log-probability under the policy being trained.
        raw_log_ratio: log pi - log mu.
        log_ratio: the same, clamped to ``LOG_RATIO_BOUND``.
        ratio: r = pi / mu.
        ratio_minus_one: r - 1, exact where r is close to 1.
        prob_diff: pi - mu.
        partition_divergence: D over the partition {TopK(mu), y_t, rest} for the objectives that are measured by it.
    """

    log_mu: Tensor
    log_pi: Tensor
    raw_log_ratio: Tensor
    log_ratio: Tensor
    ratio: Tensor
    ratio_minus_one: Tensor
    prob_diff: Tensor
    partition_divergence: Tensor | None = None

    @classmethod
    def of(cls, log_pi: Tensor, log_mu: Tensor, partition_divergence: Tensor | None = None) -> TokenRatio:
        """Build it from log pi and log mu, both ``[B, T]`` fp32."""
        raw_log_ratio = log_pi - log_mu
        log_ratio = raw_log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        ratio = torch.exp(log_ratio)
        ratio_minus_one = torch.expm1(log_ratio)
        # mu (r - 1) keeps its digits where exp(log_pi) - exp(log_mu) cancels. Where log r was clamped from above,
        # mu is raised to pi / exp(bound), so that the product is still pi - mu to within exp(-bound).
        prob_diff = log_pi - LOG_RATIO_BOUND
        torch.maximum(log_mu, prob_diff, out=prob_diff).exp_().mul_(ratio_minus_one)
        return cls(
            log_mu=log_mu,
            log_pi=log_pi,
            raw_log_ratio=raw_log_ratio,
            log_ratio=log_ratio,
            ratio=ratio,
            ratio_minus_one=ratio_minus_one,
            prob_diff=prob_diff,
            partition_divergence=partition_divergence,
        )

    def through_the_clamp_(self, gradient: Tensor) -> Tensor:
        """``gradient`` where the log-ratio was not clamped, else 0; in place."""
        return torch.ops.aten.hardtanh_backward.grad_input(
            gradient, self.raw_log_ratio, -_NEXT_BEYOND_BOUND, _NEXT_BEYOND_BOUND, grad_input=gradient
        )


@dataclass(frozen=True)
class Geometry:
    """A distance and the penalty that grows with it.

    Attributes:
        distance: tokens -> D, signed.
        penalty: (tokens, D, c, c D) -> 2 c P with dP / d log pi = r D, in expectation over mu a divergence of pi from
            mu; None where a distance has none (it is then held constant in the objective's value). A new tensor.
            Twice the penalty, since most are half a product: who subtracts one takes the half in the same pass.
        divergence: for a distance over a partition of the vocabulary, the divergence that has to be supplied with
            the tokens.
    """

    distance: Callable[[TokenRatio], Tensor]
    penalty: Callable[[TokenRatio, Tensor, Tensor, Tensor], Tensor] | None = None
    divergence: Divergence | None = None


def _probability(tokens: TokenRatio) -> Tensor:
    return tokens.prob_diff


def _product(tokens: TokenRatio, distance: Tensor, factor: Tensor, scaled: Tensor) -> Tensor:
    return scaled * tokens.ratio_minus_one


PROBABILITY = Geometry(_probability, _product)
"""pi - mu: the total variation of the two Bernoullis "this token or another" (DPPO, Binary-TV; DRPO). Its penalty,
mu (r - 1)^2 / 2, is half the squared l2 distance sum (pi - mu)^2 in expectation."""


def _ratio(tokens: TokenRatio) -> Tensor:
    return tokens.ratio_minus_one


RATIO = Geometry(_ratio, _product)
"""r - 1 (PPO, SPO). Its penalty, (r - 1)^2 / 2, is half of chi^2 = sum (pi - mu)^2 / mu."""


def _log_ratio(tokens: TokenRatio) -> Tensor:
    return tokens.log_ratio


def _kl_penalty(tokens: TokenRatio, distance: Tensor, factor: Tensor, scaled: Tensor) -> Tensor:
    return torch.mul(tokens.ratio, distance).sub_(tokens.ratio_minus_one).mul_(factor).mul_(2.0)


LOG_RATIO = Geometry(_log_ratio, _kl_penalty)
"""log r. Its penalty, r log r - (r - 1), is KL(pi || mu), importance-sampled."""


def _direction(tokens: TokenRatio) -> Tensor:
    return tokens.log_ratio.sign().mul_(0.5)


def _twice_product(tokens: TokenRatio, distance: Tensor, factor: Tensor, scaled: Tensor) -> Tensor:
    return torch.mul(scaled, tokens.ratio_minus_one).mul_(2.0)


DIRECTION = Geometry(_direction, _twice_product)
"""sign(r - 1) / 2: no distance, only a direction. Its penalty, abs(r - 1) / 2, is the total variation."""


def _k3(tokens: TokenRatio) -> Tensor:
    return torch.expm1(-tokens.log_ratio).neg_()


def _k3_penalty(tokens: TokenRatio, distance: Tensor, factor: Tensor, scaled: Tensor) -> Tensor:
    return torch.sub(tokens.ratio_minus_one, tokens.log_ratio).mul_(factor).mul_(2.0)


K3 = Geometry(_k3, _k3_penalty)
"""1 - 1 / r. Its penalty, r - 1 - log r, is Schulman's k3 estimator of KL(mu || pi)."""


def _binary_kl(tokens: TokenRatio) -> Tensor:
    # (1 - mu) / (1 - pi) is taken as 1 + (pi - mu) / (1 - pi), whose log1p is exact for p near 0 and near 1.
    rest_pi = torch.expm1(tokens.log_pi).neg_().clamp_(min=_MIN_REST)
    log_rest_ratio = torch.div(tokens.prob_diff, rest_pi).clamp_(min=-1.0 + 2**-23).log1p_()
    rest_term = torch.expm1(tokens.log_mu).neg_().mul_(log_rest_ratio)
    kl = rest_term.addcmul_(tokens.log_mu.exp(), tokens.raw_log_ratio, value=-1.0)
    return kl.clamp_(0.0, _LARGEST_KL).copysign_(tokens.log_ratio)


BINARY_KL = Geometry(_binary_kl)
"""KL(Bern(mu) || Bern(pi)) in nats, signed by the direction of the move (DPPO, Binary-KL)."""


def _partition(tokens: TokenRatio) -> Tensor:
    if tokens.partition_divergence is None:
        raise ValueError("a Top-K objective needs the divergence over its partition")
    # The divergence has no sign: the sampled token's move gives it one.
    return tokens.partition_divergence.abs().mul_(tokens.log_ratio.sign())


TOP_K_TV = Geometry(_partition, divergence=total_variation)
"""Total variation over TopK(mu), the sampled token and the rest (DPPO, Top-K)."""

TOP_K_KL = Geometry(_partition, divergence=kullback_leibler)
"""KL(mu || pi) over the same partition, in nats (DPPO, Top-K)."""

"""Geometries: how far the policy pi is from another policy mu at a sampled token, signed by the direction of the move.

All of them are elementwise on ``[B, T]`` fp32 tensors, positive where pi > mu and negative where pi < mu.
Each keeps its digits near p = 1 and p -> 0, where ``exp(a) - exp(b)`` and ``log(1 - p)`` lose them in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from drpo_verl.losses.partition import LARGEST_DIVERGENCE, Divergence, kullback_leibler, total_variation

LOG_RATIO_BOUND = 20.0
"""log r is clamped to +-20, as in the reference code of both papers; an uncapped ratio has no gradient beyond."""

_SMALLEST_REST = 1e-12
"""Floor of 1 - pi in the KL: pi rounds to exactly 1 in fp32, which must not make the KL infinite."""


def indicator(values: Tensor, above: float, out: Tensor | None = None) -> Tensor:
    """1 where ``values > above``, else 0: a number, since what is made of it are sums and products."""
    return torch.gt(values, above, out=torch.empty_like(values) if out is None else out)


@dataclass(frozen=True)
class TokenRatio:
    """What every geometry is computed from; each field ``[B, T]`` fp32, without a graph.

    Attributes:
        log_mu: log mu(y_t | s_t), the sampled token's log-probability under the policy that pi is measured against.
        log_pi: log pi(y_t | s_t), its log-probability under the policy being trained.
        unclamped_log_ratio: log pi - log mu.
        log_ratio: log r, the same clamped to ``LOG_RATIO_BOUND``.
        ratio: r = pi / mu.
        ratio_minus_one: r - 1, exact where r is close to 1.
        mu: the probability itself.
        prob_diff: pi - mu, exact where pi is close to mu.
        partition_divergence: D over the partition {TopK(mu), y_t, rest}, for the objectives that are measured by it.
        partition_derivative: the derivative of the KL divergence along the sampled token's gradient, see
            ``partition.kullback_leibler_derivative``.
    """

    log_mu: Tensor
    log_pi: Tensor
    unclamped_log_ratio: Tensor
    log_ratio: Tensor
    ratio: Tensor
    ratio_minus_one: Tensor
    mu: Tensor
    prob_diff: Tensor
    partition_divergence: Tensor | None = None
    partition_derivative: Tensor | None = None

    @classmethod
    def of(
        cls,
        log_pi: Tensor,
        log_mu: Tensor,
        partition_divergence: Tensor | None = None,
        partition_derivative: Tensor | None = None,
    ) -> TokenRatio:
        """Build it from log pi and log mu, both ``[B, T]`` fp32."""
        unclamped_log_ratio = log_pi - log_mu
        log_ratio = unclamped_log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        ratio, mu = torch.exp(log_ratio), torch.exp(log_mu)
        # (pi - mu) / (pi + mu) = (r - 1) / (r + 1) = tanh(log(r) / 2): no difference of close numbers is taken, and
        # tanh is 1 to the last digit long before log r is clamped.
        relative = torch.tanh_(0.5 * unclamped_log_ratio)
        return cls(
            log_mu=log_mu,
            log_pi=log_pi,
            unclamped_log_ratio=unclamped_log_ratio,
            log_ratio=log_ratio,
            ratio=ratio,
            ratio_minus_one=torch.addcmul(relative, relative, ratio),
            mu=mu,
            prob_diff=torch.exp(log_pi).add_(mu).mul_(relative),
            partition_divergence=partition_divergence,
            partition_derivative=partition_derivative,
        )

    @cached_property
    def abs_prob_diff(self) -> Tensor:
        """abs(pi - mu), ``[B, T]``."""
        return self.prob_diff.abs()

    @property
    def is_within_bound(self) -> Tensor:
        """1 where log r has not been clamped, else 0, ``[B, T]``: the derivative of the clamp."""
        return torch.eq(self.unclamped_log_ratio, self.log_ratio, out=torch.empty_like(self.log_ratio))


@dataclass(frozen=True)
class Geometry:
    """A distance, and the penalty that grows with it.

    Attributes:
        distance: tokens -> D ``[B, T]``, signed by the direction of the move.
        penalty: tokens -> P ``[B, T]`` with dP / d log pi = r D; in expectation over mu, P is a divergence of pi from
            mu. None for a distance that has none: an objective's value then holds it constant.
        divergence: for a distance over a partition of the vocabulary, the divergence that has to be supplied with
            the tokens.
        bounded: whether abs(D) <= 1 always, so that a threshold of 1 or more is never reached.
        name: abs(D) as the documentation writes it.
        penalty_factor: c, where P is c D (r - 1) for every token; None where it is not. With it no P has to be computed
            where x = D / delta is there already.
    """

    distance: Callable[[TokenRatio], Tensor]
    penalty: Callable[[TokenRatio], Tensor] | None = None
    divergence: Divergence | None = None
    bounded: bool = False
    name: str = "D"
    penalty_factor: float | None = None


def _probability(tokens: TokenRatio) -> Tensor:
    return tokens.prob_diff


def _l2_penalty(tokens: TokenRatio) -> Tensor:
    return (tokens.prob_diff * tokens.ratio_minus_one).mul_(0.5)


PROBABILITY = Geometry(_probability, _l2_penalty, bounded=True, name="abs(π − μ)", penalty_factor=0.5)
"""pi - mu: the total variation of the two Bernoullis "this token or another" (DPPO, Binary-TV; DRPO). Its penalty,
mu (r - 1)^2 / 2, is half the squared l2 distance sum (pi - mu)^2 in expectation."""


def _ratio(tokens: TokenRatio) -> Tensor:
    return tokens.ratio_minus_one


def _chi2_penalty(tokens: TokenRatio) -> Tensor:
    return 0.5 * tokens.ratio_minus_one**2


RATIO = Geometry(_ratio, _chi2_penalty, name="abs(r − 1)", penalty_factor=0.5)
"""r - 1 (PPO, SPO). Its penalty, (r - 1)^2 / 2, is half of chi^2 = sum (pi - mu)^2 / mu."""


def _log_ratio(tokens: TokenRatio) -> Tensor:
    return tokens.log_ratio


def _kl_penalty(tokens: TokenRatio) -> Tensor:
    return tokens.ratio * tokens.log_ratio - tokens.ratio_minus_one


LOG_RATIO = Geometry(_log_ratio, _kl_penalty)
"""log r. Its penalty, r log r - (r - 1), is KL(pi || mu), importance-sampled."""


def _half_sign(tokens: TokenRatio) -> Tensor:
    return 0.5 * tokens.log_ratio.sign()


def _tv_penalty(tokens: TokenRatio) -> Tensor:
    return 0.5 * tokens.ratio_minus_one.abs()


DIRECTION_ONLY = Geometry(_half_sign, _tv_penalty, penalty_factor=1.0)
"""sign(r - 1) / 2: no distance, only a direction. Its penalty, abs(r - 1) / 2, is the total variation."""


def _k3(tokens: TokenRatio) -> Tensor:
    return -torch.expm1(-tokens.log_ratio)


def _k3_penalty(tokens: TokenRatio) -> Tensor:
    return tokens.ratio_minus_one - tokens.log_ratio


K3 = Geometry(_k3, _k3_penalty)
"""1 - 1 / r. Its penalty, r - 1 - log r, is Schulman's k3 estimator of KL(mu || pi)."""


def _bernoulli_kl(log_p: Tensor, log_q: Tensor, log_q_over_p: Tensor, q_minus_p: Tensor) -> Tensor:
    """KL(Bern(p) || Bern(q)), which rounding may make slightly negative."""
    rest_p = -torch.expm1(log_p)
    rest_q = (-torch.expm1(log_q)).clamp(min=_SMALLEST_REST)
    # log((1 - p) / (1 - q)) as log(1 + (q - p) / (1 - q)), which is exact for p near 0 and near 1.
    log_rest_ratio = torch.log1p((q_minus_p / rest_q).clamp(min=-1.0 + 2**-23))
    return rest_p * log_rest_ratio - log_p.exp() * log_q_over_p


def _binary_kl(tokens: TokenRatio) -> Tensor:
    kl = _bernoulli_kl(tokens.log_mu, tokens.log_pi, tokens.unclamped_log_ratio, tokens.prob_diff)
    return kl.clamp(0.0, LARGEST_DIVERGENCE).copysign(tokens.log_ratio)


BINARY_KL = Geometry(_binary_kl, name="KL(Bern(μ) ‖ Bern(π))")
"""KL(Bern(mu) || Bern(pi)) in nats, signed by the direction of the move (DPPO, Binary-KL)."""


def _larger_binary_kl(tokens: TokenRatio) -> Tensor:
    forward = _bernoulli_kl(tokens.log_mu, tokens.log_pi, tokens.unclamped_log_ratio, tokens.prob_diff)
    reverse = _bernoulli_kl(tokens.log_pi, tokens.log_mu, -tokens.unclamped_log_ratio, -tokens.prob_diff)
    return torch.maximum(forward, reverse).clamp(0.0, LARGEST_DIVERGENCE).copysign(tokens.log_ratio)


SYMMETRISED_BINARY_KL = Geometry(
    _larger_binary_kl, name="the larger of KL(Bern(μ) ‖ Bern(π)) and KL(Bern(π) ‖ Bern(μ))"
)
"""The larger of KL(Bern(mu) || Bern(pi)) and KL(Bern(pi) || Bern(mu)), in nats (KPop, arXiv 2606.15079)."""


def _partition(tokens: TokenRatio) -> Tensor:
    if tokens.partition_divergence is None:
        raise ValueError("a Top-K objective needs the divergence over its partition")
    # The divergence has no sign: the sampled token's move gives it one.
    return tokens.partition_divergence * tokens.log_ratio.sign()


TOP_K_TV = Geometry(_partition, divergence=total_variation, bounded=True, name="TV over TopK(μ), y_t and the rest")
"""Total variation over TopK(mu), the sampled token and the rest (DPPO, Top-K)."""

TOP_K_KL = Geometry(_partition, divergence=kullback_leibler, name="KL(μ ‖ π) over TopK(μ), y_t and the rest")
"""KL(mu || pi) over the same partition, in nats (DPPO, Top-K)."""

"""Geometries: how far pi is from mu on the sampled token, signed by the direction of the move.

All of them are elementwise on ``[B, T]`` fp32 tensors, positive where pi > mu and negative where pi < mu.
Each keeps its digits near p = 1 and p -> 0, where ``exp(a) - exp(b)`` and ``log(1 - p)`` lose them in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""log r is clamped to +-20, as in the reference code of both papers; uncapped, its gradient is zero beyond."""

_MIN_REST = 1e-12
"""Floor of 1 - pi in the KL: pi rounds to exactly 1 in fp32, which must not make the KL infinite."""


def indicator_positive_(x: Tensor) -> Tensor:
    """1.0 where x > 0, else 0.0, in place; on a CPU a bool tensor and a select cost several times more."""
    return x.sign_().clamp_(min=0.0)


@dataclass(frozen=True)
class TokenRatio:
    """What every geometry is computed from; each field ``[B, T]`` fp32, without a graph.

    Attributes:
        log_mu: log mu(y_t | s_t), the sampled token's log-probability in the rollout engine.
        log_pi: log pi(y_t | s_t), its log-probability under the policy being trained.
        log_ratio: log pi - log mu, clamped to ``LOG_RATIO_BOUND``.
        ratio: r = pi / mu.
        ratio_minus_one: r - 1, exact where r is close to 1.
        prob_diff: pi - mu.
    """

    log_mu: Tensor
    log_pi: Tensor
    log_ratio: Tensor
    ratio: Tensor
    ratio_minus_one: Tensor
    prob_diff: Tensor

    @classmethod
    def of(cls, log_pi: Tensor, log_mu: Tensor) -> TokenRatio:
        """Build it from log pi and log mu, both ``[B, T]`` fp32."""
        log_ratio = (log_pi - log_mu).clamp_(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        ratio_minus_one = torch.expm1(log_ratio)
        # mu (r - 1) keeps its digits where exp(log_pi) - exp(log_mu) cancels. Where log r was clamped from above,
        # mu is raised to pi / exp(bound), so that the product is still pi - mu to within exp(-bound).
        prob_diff = torch.maximum(log_mu, log_pi - LOG_RATIO_BOUND).exp_().mul_(ratio_minus_one)
        return cls(
            log_mu=log_mu,
            log_pi=log_pi,
            log_ratio=log_ratio,
            ratio=torch.exp(log_ratio),
            ratio_minus_one=ratio_minus_one,
            prob_diff=prob_diff,
        )

    def clamped(self) -> Tensor:
        """1 where the log-ratio was clamped, else 0; ``[B, T]``."""
        return (self.log_pi - self.log_mu).sub_(self.log_ratio).sign_().square_()


Geometry = Callable[[TokenRatio], Tensor]


def probability(tokens: TokenRatio) -> Tensor:
    """pi - mu: the total variation of the two Bernoullis "this token or another" (DPPO, Binary-TV; DRPO)."""
    return tokens.prob_diff


def binary_kl(tokens: TokenRatio) -> Tensor:
    """KL(Bern(mu) || Bern(pi)) in nats, signed by the direction of the move (DPPO, Binary-KL).

    (1 - mu) / (1 - pi) is taken as 1 + (pi - mu) / (1 - pi), whose log1p is exact for p near 0 and near 1.
    """
    rest_pi = torch.expm1(tokens.log_pi).neg_().clamp_(min=_MIN_REST)
    log_rest_ratio = torch.div(tokens.prob_diff, rest_pi).clamp_(min=-1.0 + 2**-23).log1p_()
    rest_term = torch.expm1(tokens.log_mu).neg_().mul_(log_rest_ratio)
    kl = rest_term.addcmul_(tokens.log_mu.exp(), tokens.log_pi - tokens.log_mu, value=-1.0)
    return kl.clamp_(min=0.0).copysign_(tokens.log_ratio)

"""Whole responses left out of the update for how far pi has moved from mu on them, beside any method.

What others call sequence rejection sampling. Here a response that is left out has w = 0, and counts in the denominator
of the loss as before; verl's ``rollout_rs`` and others take it out of the response mask, and so out of the denominator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drpo_verl.losses.geometry import BINARY_KL, TokenRatio
from drpo_verl.losses.scope import lengths


def _geometric(tokens: TokenRatio, is_token: Tensor) -> Tensor:
    return (tokens.log_ratio.sum(-1, keepdim=True) / lengths(is_token)).exp()


def _product(tokens: TokenRatio, is_token: Tensor) -> Tensor:
    return tokens.log_ratio.sum(-1, keepdim=True).exp()


def _max_kl(tokens: TokenRatio, is_token: Tensor) -> Tensor:
    return BINARY_KL.distance(tokens).abs().amax(-1, keepdim=True)


def _mean_kl(tokens: TokenRatio, is_token: Tensor) -> Tensor:
    return BINARY_KL.distance(tokens).abs().sum(-1, keepdim=True) / lengths(is_token)


def _mean_k3(tokens: TokenRatio, is_token: Tensor) -> Tensor:
    return (tokens.ratio_minus_one - tokens.log_ratio).sum(-1, keepdim=True) / lengths(is_token)


METRICS: dict[str, Callable[[TokenRatio, Tensor], Tensor]] = {
    "geometric": _geometric,
    "product": _product,
    "max_kl": _max_kl,
    "mean_kl": _mean_kl,
    "mean_k3": _mean_k3,
}
"""(tokens, which of them there are) -> ``[B, 1]``: the geometric mean and the product of r; the largest and the mean
KL(Bern(mu) || Bern(pi)); the mean of r - 1 - log r."""

RATIOS = ("geometric", "product")
"""The metrics that are 1, and not 0, where pi = mu: they have a lower bound, too."""


@dataclass(frozen=True)
class SequenceMask:
    """Which responses are kept.

    Attributes:
        metric: a name in ``METRICS``, or None for the veto alone.
        lower: the least value of the metric that is kept.
        upper: the largest value that is kept.
        veto: a response with a token whose r is below is left out; None for no veto.
    """

    metric: str | None = None
    lower: float | None = None
    upper: float | None = None
    veto: float | None = None

    def kept(self, tokens: TokenRatio, is_token: Tensor) -> Tensor:
        """1 for each response that is kept, else 0: ``[B, 1]`` fp32. One without tokens is kept."""
        kept = torch.ones_like(is_token[:, :1])
        if self.metric is not None:
            value = METRICS[self.metric](tokens, is_token)
            if self.lower is not None:
                kept *= value >= self.lower
            if self.upper is not None:
                kept *= value <= self.upper
        if self.veto is not None:
            kept *= tokens.ratio.amin(-1, keepdim=True) >= self.veto  # r = 1 at padding, of which none is left out
        return kept

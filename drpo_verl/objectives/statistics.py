"""Exact statistics over the tokens of a step, whatever the micro-batches and ranks it was cut into.

A fraction of tokens is a sum over a count. Micro-batches carry the sums, the count and the extrema; these
merge, and are divided once, when everything has been merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drpo_verl.objectives.enforcement import Enforcement, Reach
from drpo_verl.objectives.geometry import TokenRatio, where_above

LOW_PROBABILITY = 0.01
"""mu at or below this counts as a low-probability token (the DRPO paper reports their share)."""

_LOG_LOW = math.log(LOW_PROBABILITY)
_BEYOND_ANY_WEIGHT = 1e30

_COUNT = "tokens"
DIVERGING = "trust_region/diverging_frac"
OUTSIDE = "trust_region/outside_frac"
_BEHAVIOUR = "mismatch/behaviour_log_prob_mean"


@dataclass(frozen=True)
class TokenAccumulators:
    """Zero-dimensional tensors on the device: sums over tokens, maxima and minima, by name."""

    sums: Mapping[str, Tensor]
    maxima: Mapping[str, Tensor]
    minima: Mapping[str, Tensor] = field(default_factory=dict)

    def __or__(self, other: TokenAccumulators) -> TokenAccumulators:
        return TokenAccumulators(
            {**self.sums, **other.sums}, {**self.maxima, **other.maxima}, {**self.minima, **other.minima}
        )

    def to_host(self) -> TokenStatistics:
        """Bring all of them to the host in one transfer, the one synchronisation of a micro-batch."""
        tensors = [*self.sums.values(), *self.maxima.values(), *self.minima.values()]
        numbers = iter(torch.stack(tensors).tolist())
        return TokenStatistics(
            sums={name: next(numbers) for name in self.sums},
            maxima={name: next(numbers) for name in self.maxima},
            minima={name: next(numbers) for name in self.minima},
        )


@dataclass(frozen=True)
class TokenStatistics:
    """The same on the host; merges with the statistics of other micro-batches, ranks and mini-batches."""

    sums: Mapping[str, float]
    maxima: Mapping[str, float]
    minima: Mapping[str, float]

    @classmethod
    def merge(cls, parts: Iterable[TokenStatistics]) -> TokenStatistics:
        """One ``TokenStatistics`` over the tokens of all parts, each of which has the same names."""
        first, *rest = parts
        return cls(
            sums={name: math.fsum(part.sums[name] for part in (first, *rest)) for name in first.sums},
            maxima={name: max(part.maxima[name] for part in (first, *rest)) for name in first.maxima},
            minima={name: min(part.minima[name] for part in (first, *rest)) for name in first.minima},
        )

    @property
    def tokens(self) -> int:
        """How many response tokens they are over."""
        return int(self.sums[_COUNT])

    @property
    def behaviour_is_finite(self) -> bool:
        """Whether every behaviour log-probability is a finite number (one that is not spoils their sum)."""
        return math.isfinite(self.sums[_BEHAVIOUR])

    def metrics(self) -> dict[str, float]:
        """Means per token and extrema, by metric name; all 0 when there was no token."""
        means = {name: total / max(self.tokens, 1) for name, total in self.sums.items() if name != _COUNT}
        extrema = {**self.maxima, **self.minima}
        return {**means, **(extrema if self.tokens else dict.fromkeys(extrema, 0.0))}


def mismatch_accumulators(tokens: TokenRatio, is_token: Tensor) -> TokenAccumulators:
    """How far pi is from mu, whatever the objective makes of it.

    Args:
        tokens: of log-probabilities that are 0 where ``is_token`` is, so that those positions add nothing to a sum.
        is_token: 1 for a response token, else 0, ``[B, T]`` fp32.
    """
    abs_diff = tokens.prob_diff.abs()
    k3 = tokens.ratio_minus_one - tokens.log_ratio  # Schulman's estimator of KL(mu || pi), never negative
    count = is_token.sum()
    return TokenAccumulators(
        sums={
            _COUNT: count,
            _BEHAVIOUR: tokens.log_mu.sum(),
            "mismatch/abs_prob_diff_mean": abs_diff.sum(),
            "mismatch/kl": k3.sum(),
            "mismatch/low_prob_frac": count - where_above(is_token, tokens.log_mu, _LOG_LOW).sum(),
        },
        maxima={
            "mismatch/abs_prob_diff_max": abs_diff.amax(),
            "mismatch/ratio_max": (tokens.ratio * is_token).amax(),
        },
    )


def region_accumulators(
    enforcement: Enforcement, weight: Tensor, reach: Reach, direction: Tensor, is_token: Tensor
) -> TokenAccumulators:
    """What the trust region did: weights, tokens outside it by the advantage's sign, tokens corrected.

    Args:
        enforcement: which of them it was.
        weight: w, ``[B, T]``; 1 where ``is_token`` is 0.
        reach: how far each token has gone; 0 where ``is_token`` is.
        direction: sign(A), 0 where ``is_token`` is.
        is_token: 1 for a response token, else 0.
    """
    outside = where_above(is_token, reach.gate, 1.0)
    every = outside.sum()
    rising_minus_falling = outside.mul_(direction).sum()
    if not enforcement.attenuates:
        corrective = torch.zeros_like(every)
    elif enforcement.gated:
        corrective = where_above(is_token, -weight, 0.0).sum()
    else:
        corrective = every  # w = 1 - excess < 0
    padding = 1.0 - is_token
    return TokenAccumulators(
        sums={
            # w = 1 at padding: taken out of the sum again.
            "trust_region/weight_mean": weight.sum() - padding.sum(),
            DIVERGING: where_above(is_token, reach.gate, 0.0).sum(),
            OUTSIDE: every,
            "trust_region/outside_frac_positive_advantage": (every + rising_minus_falling) / 2.0,
            "trust_region/outside_frac_negative_advantage": (every - rising_minus_falling) / 2.0,
            "trust_region/corrective_frac": corrective,
        },
        maxima={},
        minima={"trust_region/weight_min": weight.add(padding, alpha=_BEYOND_ANY_WEIGHT).amin()},
    )

"""Exact statistics over the tokens of a step, whatever the micro-batches and ranks it was cut into.

A fraction of tokens is a sum over a count. Micro-batches carry the sums, the count and the extrema; these
merge, and are divided once, when everything has been merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from drpo_verl.losses.diagnostics import by_probability, series
from drpo_verl.losses.enforcement import Enforcement, Reach
from drpo_verl.losses.geometry import TokenRatio, where_above

LOW_PROBABILITY = 0.01
"""mu at or below this counts as a low-probability token (the DRPO paper reports their share)."""

_LOG_LOW = math.log(LOW_PROBABILITY)

_COUNT = "tokens"
DIVERGING = "trust_region/diverging_frac"
OUTSIDE = "trust_region/outside_frac"
ABS_PROB_DIFF_MAX = "mismatch/abs_prob_diff_max"
PARTITION = "mismatch/partition_divergence_mean"
_GRADIENT = "gradient"
_BEHAVIOUR = "mismatch/behaviour_log_prob_mean"


@dataclass(frozen=True)
class TokenAccumulators:
    """Tensors on the device, by name.

    Attributes:
        sums: over the tokens of each response, ``[B]``. (Reducing one dimension at a time, a CPU's threads need not
            meet in between, which takes them longer than the sum.)
        maxima: the same way.
        minima: the same way.
        vectors: of sums over all tokens.
    """

    sums: Mapping[str, Tensor] = field(default_factory=dict)
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    minima: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    def __or__(self, other: TokenAccumulators) -> TokenAccumulators:
        return TokenAccumulators(
            {**self.sums, **other.sums},
            {**self.maxima, **other.maxima},
            {**self.minima, **other.minima},
            {**self.vectors, **other.vectors},
        )

    def to_host(self) -> TokenStatistics:
        """Bring all of them to the host in one transfer, the one synchronisation of a micro-batch."""
        over_responses = [
            torch.stack(list(self.sums.values())).sum(-1),
            torch.stack(list(self.maxima.values())).amax(-1),
            torch.stack(list(self.minima.values())).amin(-1),
        ]
        numbers = iter(torch.cat([*over_responses, *self.vectors.values()]).tolist())
        return TokenStatistics(
            sums={name: next(numbers) for name in self.sums},
            maxima={name: next(numbers) for name in self.maxima},
            minima={name: next(numbers) for name in self.minima},
            vectors={name: tuple(islice(numbers, len(vector))) for name, vector in self.vectors.items()},
        )


@dataclass(frozen=True)
class TokenStatistics:
    """The same on the host; merges with the statistics of other micro-batches, ranks and mini-batches.

    Attributes:
        sums: over tokens, by metric name.
        maxima: over tokens.
        minima: over tokens.
        vectors: of sums, see ``drpo_verl.losses.diagnostics``; none where they are switched off.
        drift: whether the policy had been updated since the weight sync: False for the first mini-batch after it.
    """

    sums: Mapping[str, float]
    maxima: Mapping[str, float]
    minima: Mapping[str, float]
    vectors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    drift: bool = False

    @classmethod
    def merge(cls, parts: Iterable[TokenStatistics]) -> TokenStatistics:
        """One ``TokenStatistics`` over the tokens of all parts, each of which has the same names."""
        every = list(parts)
        first = every[0]
        return cls(
            sums={name: math.fsum(part.sums[name] for part in every) for name in first.sums},
            maxima={name: max(part.maxima[name] for part in every) for name in first.maxima},
            minima={name: min(part.minima[name] for part in every) for name in first.minima},
            vectors={
                name: tuple(map(math.fsum, zip(*(part.vectors[name] for part in every), strict=True)))
                for name in first.vectors
            },
            drift=all(part.drift for part in every),
        )

    @classmethod
    def by_drift(cls, parts: Iterable[TokenStatistics]) -> list[TokenStatistics]:
        """Merge the parts before the first update, and those after it: at most two, in this order."""
        every = list(parts)
        return [cls.merge(some) for drift in (False, True) if (some := [part for part in every if part.drift == drift])]

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
        return {**means, **(extrema if self.tokens else dict.fromkeys(extrema, 0.0)), **self._of_the_gradient()}

    def _of_the_gradient(self) -> dict[str, float]:
        if _GRADIENT not in self.vectors:
            return {}
        removed, whole = self.vectors[_GRADIENT]
        return {"trust_region/gradient_removed_frac": removed / whole if whole else 0.0}


def step_metrics(parts: Sequence[TokenStatistics]) -> dict[str, float]:
    """All metrics of a step: over all of its tokens, and the mismatch apart from the drift.

    In a step's first mini-batch pi still has the weights that sampled (or, asynchronously, almost): what is between pi
    and mu there is the two engines' doing. In the later ones the updates since have been added to it.
    """
    merged = TokenStatistics.merge(parts)
    metrics = merged.metrics()
    if not merged.vectors:
        return metrics
    for one in TokenStatistics.by_drift(parts):
        prefix = "policy_drift" if one.drift else "inference_mismatch"
        metrics |= {f"{prefix}/{name}": value for name, value in series(one.vectors).items()}
        metrics |= {f"{prefix}_by_prob/{name}": value for name, value in by_probability(one.vectors).items()}
        if one.tokens:
            for name in ("abs_prob_diff_max", "ratio_max"):
                metrics[f"{prefix}/{name}"] = one.maxima[f"mismatch/{name}"]
    return metrics


def mismatch_accumulators(measured: TokenRatio, tokens: TokenRatio, is_token: Tensor) -> TokenAccumulators:
    """How far pi is from mu, whatever the objective makes of it.

    Args:
        measured: what the objective's distance is computed from; may hold a divergence over a partition.
        tokens: of pi and mu, whose logarithms are 0 where ``is_token`` is, so that those positions add nothing to a
            sum.
        is_token: 1 for a response token, else 0, ``[B, T]`` fp32.
    """
    count = is_token.sum(-1)
    scratch = tokens.prob_diff.abs()
    sums = {_COUNT: count, _BEHAVIOUR: tokens.log_mu.sum(-1), "mismatch/abs_prob_diff_mean": scratch.sum(-1)}
    maxima = {ABS_PROB_DIFF_MAX: scratch.amax(-1)}
    # Schulman's k3 estimator of KL(mu || pi), never negative.
    sums["mismatch/kl"] = torch.sub(tokens.ratio_minus_one, tokens.log_ratio, out=scratch).sum(-1)
    sums["mismatch/low_prob_frac"] = count - where_above(is_token, tokens.log_mu, _LOG_LOW, out=scratch).sum(-1)
    maxima["mismatch/ratio_max"] = torch.mul(tokens.ratio, is_token, out=scratch).amax(-1)
    if measured.partition_divergence is not None:
        sums[PARTITION] = measured.partition_divergence.sum(-1)
        maxima["mismatch/partition_divergence_max"] = measured.partition_divergence.amax(-1)
    return TokenAccumulators(sums, maxima)


def region_accumulators(
    enforcement: Enforcement,
    weight: Tensor,
    reach: Reach,
    direction: Tensor,
    is_token: Tensor,
    unweighted: Tensor | None = None,
) -> TokenAccumulators:
    """What the trust region did: weights, tokens outside it by the advantage's sign, tokens corrected.

    Args:
        enforcement: which of them it was.
        weight: w, ``[B, T]``; 1 where ``is_token`` is 0.
        reach: how far each token has gone; 0 where ``is_token`` is.
        direction: sign(A), 0 where ``is_token`` is.
        is_token: 1 for a response token, else 0.
        unweighted: abs(A) min(r, C), the size of a token's gradient at w = 1, 0 where ``is_token`` is; to measure how
            much of it the trust region takes away.
    """
    scratch = torch.sub(1.0, weight)  # 0 at padding, of which weight itself would carry more than of tokens
    sums = {"trust_region/weight_mean": is_token.sum(-1) - scratch.sum(-1)}
    vectors = {}
    if unweighted is not None:
        sums["trust_region/attenuated_frac"] = where_above(where_above(is_token, weight, 0.0), scratch, 0.0).sum(-1)
        vectors[_GRADIENT] = torch.stack([scratch.clamp_(0.0, 1.0).mul_(unweighted).sum(), unweighted.sum()])
    every = where_above(is_token, reach.gate, 1.0, out=scratch).sum(-1)
    positive = where_above(scratch, direction, 0.0, out=scratch).sum(-1)  # no token without a direction is outside
    if not enforcement.attenuates:
        corrective = torch.zeros_like(every)
    elif enforcement.gated:
        corrective = where_above(is_token, weight.neg(), 0.0, out=scratch).sum(-1)
    else:
        corrective = every  # w = 1 - excess < 0
    sums |= {
        DIVERGING: where_above(is_token, reach.gate, 0.0, out=scratch).sum(-1),
        OUTSIDE: every,
        "trust_region/outside_frac_positive_advantage": positive,
        "trust_region/outside_frac_negative_advantage": every - positive,
        "trust_region/corrective_frac": corrective,
    }
    # w / 0 is infinite at padding, above any other.
    minima = {"trust_region/weight_min": torch.div(weight, is_token, out=scratch).amin(-1)}
    return TokenAccumulators(sums, minima=minima, vectors=vectors)

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

from drpo_verl.losses.diagnostics import by_probability, dot, low_probability_share, series
from drpo_verl.losses.direction import BY_RATIO, PREDICTIVE, Direction
from drpo_verl.losses.enforcement import Enforcement, TrustRegionDistance
from drpo_verl.losses.geometry import TokenRatio, indicator
from drpo_verl.losses.offpolicy import verl_metrics
from drpo_verl.metrics import names

LOW_PROBABILITY = 0.01
"""mu at or below this counts as a low-probability token (the DRPO paper reports their share); an edge of the bins."""

_TOKENS = "tokens"
_WEIGHT_REMOVED = "weight_removed"
_OUTSIDE_WITH_ADVANTAGE, _OUTSIDE_SURPLUS = "outside_with_advantage", "outside_surplus"
_COUNTS = (_TOKENS, _WEIGHT_REMOVED, _OUTSIDE_WITH_ADVANTAGE, _OUTSIDE_SURPLUS)
_GRADIENT, _GRADIENT_REMOVED = "gradient", "gradient_removed"


@dataclass(frozen=True)
class TokenAccumulators:
    """What a micro-batch adds, as tensors on the device, by name.

    Attributes:
        counts: how many tokens there are, and other sums over them that are no metric by themselves; fp32.
        sums: over all tokens, by the name of the metric that is their mean, a share for what is 1 or 0; fp32.
        maxima: over all tokens; fp32.
        minima: over all tokens; fp32.
        moments: other sums, of which metrics are made (see ``drpo_verl.losses.diagnostics``); fp32 or float64.
        histograms: sums over the tokens of each bin, ``[bins]`` float64.
    """

    counts: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    minima: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    histograms: Mapping[str, Tensor] = field(default_factory=dict)

    def __or__(self, other: TokenAccumulators) -> TokenAccumulators:
        return TokenAccumulators(
            counts={**self.counts, **other.counts},
            sums={**self.sums, **other.sums},
            maxima={**self.maxima, **other.maxima},
            minima={**self.minima, **other.minima},
            moments={**self.moments, **other.moments},
            histograms={**self.histograms, **other.histograms},
        )

    def to_host(self) -> TokenStatistics:
        """Bring all of them to the host in one transfer, the one synchronisation of a micro-batch."""
        return self.to_host_with()[0]

    def to_host_with(self, *scalars: Tensor) -> tuple[TokenStatistics, list[float]]:
        """As ``to_host``, with other scalars in the same transfer: the statistics, and their values."""
        kinds = [self.counts, self.sums, self.maxima, self.minima, self.moments]
        in_fp32 = [*scalars, *(value for kind in kinds[:4] for value in kind.values())]
        with torch.no_grad():
            groups = [in_fp32, [*self.moments.values()]]
            stacked = [torch.stack(group).double() for group in groups if group]
            numbers = iter(torch.cat([*stacked, *self.histograms.values()]).tolist())
        values = [next(numbers) for _ in scalars]
        counts, sums, maxima, minima, moments = ({name: next(numbers) for name in kind} for kind in kinds)
        histograms = {name: tuple(islice(numbers, len(bins))) for name, bins in self.histograms.items()}
        return TokenStatistics({**counts, **sums}, maxima, minima, moments, histograms), values


@dataclass(frozen=True)
class TokenStatistics:
    """Sums, extrema and histograms over tokens, as numbers; merges with those of other micro-batches, ranks and steps.

    Attributes:
        sums: over tokens, by metric name; and the number of tokens and other counts.
        maxima: over tokens.
        minima: over tokens.
        moments: other sums over tokens; none where diagnostics are switched off.
        histograms: sums by bin; none where diagnostics are switched off.
        drift: whether the policy had been updated since the weight sync: False for the first mini-batch after it.
    """

    sums: Mapping[str, float]
    maxima: Mapping[str, float]
    minima: Mapping[str, float]
    moments: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    drift: bool = False

    @classmethod
    def merge(cls, parts: Sequence[TokenStatistics]) -> TokenStatistics:
        """One ``TokenStatistics`` over the tokens of all parts, each of which has the same names."""
        first = parts[0]
        return cls(
            sums={name: math.fsum(part.sums[name] for part in parts) for name in first.sums},
            maxima={name: max(part.maxima[name] for part in parts) for name in first.maxima},
            minima={name: min(part.minima[name] for part in parts) for name in first.minima},
            moments={name: math.fsum(part.moments[name] for part in parts) for name in first.moments},
            histograms={
                name: tuple(map(math.fsum, zip(*(part.histograms[name] for part in parts), strict=True)))
                for name in first.histograms
            },
            drift=all(part.drift for part in parts),
        )

    @classmethod
    def by_drift(cls, parts: Iterable[TokenStatistics]) -> list[TokenStatistics]:
        """Merge the parts before the first update, and those after it: at most two, in this order."""
        before_update: list[TokenStatistics] = []
        after_update: list[TokenStatistics] = []
        for part in parts:
            (after_update if part.drift else before_update).append(part)
        return [cls.merge(some) for some in (before_update, after_update) if some]

    @property
    def tokens(self) -> int:
        """How many response tokens they are over."""
        return int(self.sums[_TOKENS])

    @property
    def behaviour_is_finite(self) -> bool:
        """Whether every behaviour log-probability is a finite number (one that is not spoils their sum)."""
        return math.isfinite(self.sums[names.BEHAVIOUR_LOG_PROB])

    def metrics(self) -> dict[str, float]:
        """Means per token and extrema, by metric name; all 0 when there was no token."""
        tokens = max(self.tokens, 1)
        mean = {name: total / tokens for name, total in self.sums.items()}
        by_sign, surplus = mean[_OUTSIDE_WITH_ADVANTAGE], mean[_OUTSIDE_SURPLUS]
        extrema = {**self.maxima, **self.minima}
        metrics = {
            **{name: share for name, share in mean.items() if name not in _COUNTS},
            names.WEIGHT_MEAN: 1.0 - mean[_WEIGHT_REMOVED] if self.tokens else 0.0,
            f"{names.OUTSIDE}_positive_advantage": (by_sign + surplus) / 2.0,
            f"{names.OUTSIDE}_negative_advantage": (by_sign - surplus) / 2.0,
            **(extrema if self.tokens else dict.fromkeys(extrema, 0.0)),
        }
        if self.histograms:
            whole = self.moments[_GRADIENT]
            metrics["trust_region/gradient_removed_frac"] = self.moments[_GRADIENT_REMOVED] / whole if whole else 0.0
            metrics["mismatch/low_prob_frac"] = low_probability_share(self.histograms, LOW_PROBABILITY)
        return metrics


def step_metrics(parts: Sequence[TokenStatistics], with_names_of_verl: bool = False) -> dict[str, float]:
    """All metrics of a step: over all of its tokens, and the mismatch apart from the drift.

    In a step's first mini-batch pi still has the weights that sampled (or, asynchronously, almost): what is between pi
    and mu there is the two engines' doing. In the later ones the updates since have been added to it.

    Args:
        parts: the statistics of its micro-batches; at least one.
        with_names_of_verl: whether to log the mismatch by the names that verl's users know as well.
    """
    metrics = TokenStatistics.merge(parts).metrics()
    for part in TokenStatistics.by_drift(parts):
        if not part.histograms or not part.tokens:
            continue
        prefix = names.POLICY_DRIFT if part.drift else names.INFERENCE_MISMATCH
        of_series = series(part.tokens, part.sums, part.moments, part.histograms)
        for name in (names.ABS_PROB_DIFF_MAX, names.RATIO_MAX):
            of_series[name.removeprefix(f"{names.MISMATCH}/")] = part.maxima[name]
        if part.drift and names.ANCHOR_ABS_PROB_DIFF_MEAN in part.sums:
            metrics[names.DRIFT_FROM_ANCHOR_MEAN] = part.sums[names.ANCHOR_ABS_PROB_DIFF_MEAN] / part.tokens
        metrics |= {f"{prefix}/{name}": value for name, value in of_series.items()}
        of_bins = by_probability(part.histograms)
        metrics |= {f"{prefix}{names.BY_PROBABILITY}/{name}": value for name, value in of_bins.items()}
        if with_names_of_verl and not part.drift:
            metrics |= verl_metrics(part.tokens, part.moments, of_series)
    return metrics


def measure_mismatch(measured: TokenRatio, tokens: TokenRatio, is_token: Tensor) -> TokenAccumulators:
    """How far pi is from mu, whatever the objective makes of it.

    Args:
        measured: what the objective's distance is computed from, ``tokens`` itself or of pi and a recomputed pi_old;
            may hold a divergence over a partition.
        tokens: of pi and mu, whose logarithms are 0 at padding, which therefore adds nothing to a sum.
        is_token: 1 for response tokens and 0 at padding, ``[B, T]`` fp32.
    """
    scratch = torch.empty_like(is_token)  # on a CPU a new tensor costs more than what is computed into it
    sums = {
        names.BEHAVIOUR_LOG_PROB: tokens.log_mu.sum(),
        names.ABS_PROB_DIFF_MEAN: tokens.abs_prob_diff.sum(),
        # Schulman's k3 estimator of KL(mu || pi), never negative.
        names.KL: torch.sub(tokens.ratio_minus_one, tokens.log_ratio, out=scratch).sum(),
    }
    maxima = {
        names.ABS_PROB_DIFF_MAX: tokens.abs_prob_diff.amax(),
        names.RATIO_MAX: torch.mul(tokens.ratio, is_token, out=scratch).amax(),
    }
    if measured is not tokens:
        sums[names.ANCHOR_ABS_PROB_DIFF_MEAN] = measured.abs_prob_diff.sum()
        maxima[names.ANCHOR_ABS_PROB_DIFF_MAX] = measured.abs_prob_diff.amax()
    if measured.partition_divergence is not None:
        sums[names.PARTITION_DIVERGENCE] = measured.partition_divergence.sum()
        maxima["mismatch/partition_divergence_max"] = measured.partition_divergence.amax()
    return TokenAccumulators(sums=sums, maxima=maxima)


def measure_trust_region(
    enforcement: Enforcement,
    direction: Direction,
    weight: Tensor,
    distance: TrustRegionDistance,
    advantage_sign: Tensor,
    is_token: Tensor,
    gradient: Tensor | None = None,
) -> TokenAccumulators:
    """What the trust region did: weights, tokens outside it by the advantage's sign, tokens corrected.

    Args:
        enforcement: which one it was.
        direction: which moves led away.
        weight: w, ``[B, T]``; 1 at padding.
        distance: how far each token is; 0 at padding, which is therefore neither diverging nor outside.
        advantage_sign: sign(A), ``[B, T]``.
        is_token: 1 for response tokens and 0 at padding, ``[B, T]`` fp32.
        gradient: A min(r, C), ``[B, T]``, whose size is that of a token's gradient at w = 1, 0 at padding; with it, how
            much of the gradient the trust region takes away is measured as well.
    """
    scratch = torch.empty_like(is_token)
    removed = 1.0 - weight  # 0 at padding, of which the sum of w itself would carry more than of tokens
    outside = distance.outside.sum()
    # Where s has sign(A) as a factor, no token without an advantage is outside.
    has_sign = direction in (BY_RATIO, PREDICTIVE)
    counts = {
        _TOKENS: is_token.sum(),
        _WEIGHT_REMOVED: removed.sum(),
        _OUTSIDE_WITH_ADVANTAGE: outside if has_sign else dot(distance.outside, advantage_sign.abs()),
        # Of tokens with A > 0 over those with A < 0.
        _OUTSIDE_SURPLUS: dot(distance.outside, advantage_sign),
    }
    corrected = indicator(removed, 1.0, out=scratch).sum() if enforcement.attenuates else removed.new_zeros(())
    sums = {
        names.DIVERGING: indicator(distance.mask_criterion, 0.0, out=scratch).sum(),
        names.OUTSIDE: outside,
        names.CORRECTED: corrected,
    }
    minima = {names.WEIGHT_MIN: torch.div(weight, is_token, out=scratch).amin()}  # 1 / 0 at padding: no minimum
    moments = {}
    if gradient is not None:
        size, removed = gradient.abs(), removed.clamp_(0.0, 1.0)
        moments = {_GRADIENT: size.sum(), _GRADIENT_REMOVED: dot(removed, size)}
        fraction = removed.frac_()  # all and nothing have none
        sums["trust_region/attenuated_frac"] = torch.gt(fraction, 0.0, out=fraction).sum()
    return TokenAccumulators(counts, sums, minima=minima, moments=moments)

"""What is measured of a step's tokens beyond the trust region: moments, histograms, bins of mu.

Micro-batches carry sums and histograms, which merge by addition, so that what is made of them is that of all tokens of
the step whatever it was cut into: means are exact, quantiles exact to the bin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from drpo_verl.losses.geometry import LOG_RATIO_BOUND, TokenRatio
from drpo_verl.metrics import names
from drpo_verl.metrics.bins import PROBABILITY_BINS

_BINS_PER_DECADE = 10
_SMALLEST = 1e-9
"""Below, two fp32 probabilities are as good as equal."""


def _edges(largest: float) -> list[float]:
    """Edges from ``_SMALLEST`` up to ``largest``, ``_BINS_PER_DECADE`` to a decade."""
    count = math.ceil(_BINS_PER_DECADE * math.log10(largest / _SMALLEST))
    return [min(largest, _SMALLEST * 10 ** (i / _BINS_PER_DECADE)) for i in range(count + 1)]


ABS_DIFF_EDGES = _edges(1.0)
"""Upper edges of the histogram of abs(pi - mu)."""

_ABS_LOG_RATIO_EDGES = _edges(LOG_RATIO_BOUND)
LOG_RATIO_EDGES = [-edge for edge in reversed(_ABS_LOG_RATIO_EDGES)] + _ABS_LOG_RATIO_EDGES
"""Upper edges of the histogram of log r."""

_SMALLEST_VARIANCE = 1e-12
"""A variance below, of probabilities, may be that of rounding."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the products of two tensors of the same shape."""
    return torch.dot(a.flatten(), b.flatten())


def measure_moments(tokens: TokenRatio, is_token: Tensor) -> dict[str, Tensor]:
    """Sums over the tokens of a micro-batch, scalars on the device, in float64 where digits cancel.

    Args:
        tokens: of log-probabilities that are 0 at padding; ``[B, T]``.
        is_token: 1 for response tokens and 0 at padding, ``[B, T]`` fp32.
    """
    ratio_minus_one = tokens.ratio_minus_one
    # In float64: where a policy is almost certain, a variance is what is left of numbers close to 1.
    mu, diff = (tokens.mu * is_token).double(), tokens.prob_diff.double()
    return {
        "log_ratio": tokens.log_ratio.sum(),
        "ratio_minus_one": ratio_minus_one.sum(),
        "chi2": dot(ratio_minus_one, ratio_minus_one),
        "diff": diff.sum(),
        "diff_squared": dot(diff, diff),
        "mu": mu.sum(),
        "mu_squared": dot(mu, mu),
        "mu_times_diff": dot(mu, diff),
    }


def measure_histograms(tokens: TokenRatio, advantage_sign: Tensor, is_token: Tensor) -> dict[str, Tensor]:
    """Histograms over the tokens of a micro-batch, float64 on the device.

    Args:
        tokens: of log-probabilities that are 0 at padding; ``[B, T]``.
        advantage_sign: sign(A), ``[B, T]``.
        is_token: 1 for response tokens and 0 at padding, ``[B, T]`` fp32.
    """
    # Signed: the edges of negative values mirror those of positive ones, and around zero there is one bin.
    middle = len(_ABS_LOG_RATIO_EDGES)
    ratio_bin = _bin(tokens.log_ratio.abs(), LOG_RATIO_BOUND).mul_(tokens.log_ratio.sign()).add_(middle)
    # One bin for each sign of A and range of mu, and within each of them a histogram of abs(pi - mu).
    shape = 3 * len(PROBABILITY_BINS), len(ABS_DIFF_EDGES)
    by_probability = _probability_bin(tokens.log_mu, advantage_sign)
    joint = _index(_bin(tokens.abs_prob_diff, 1.0).add_(by_probability, alpha=shape[1]))
    counts, abs_diffs = (
        _histogram(joint, math.prod(shape), counted).view(shape)
        for counted in (is_token, tokens.abs_prob_diff.double())
    )
    return {
        "abs_diff": counts.sum(0),
        "log_ratio": _histogram(_index(ratio_bin), len(LOG_RATIO_EDGES), is_token),
        "probability": counts.sum(1),
        "abs_diff_by_probability": abs_diffs.sum(1),
    }


def _bin(magnitude: Tensor, largest: float) -> Tensor:
    """The number of the first of ``_edges(largest)`` that is at or above: by logarithm, which needs no search."""
    decades = magnitude.clamp(_SMALLEST, largest).log10_().sub_(math.log10(_SMALLEST))
    return decades.mul_(_BINS_PER_DECADE).ceil_()


def _probability_bin(log_mu: Tensor, advantage_sign: Tensor) -> Tensor:
    """Which of ``PROBABILITY_BINS`` each token is in: those of A < 0 come first, then those of A = 0, then of A > 0."""
    bins, is_above = (advantage_sign + 1.0).mul_(len(PROBABILITY_BINS)), torch.empty_like(log_mu)
    for edge in list(PROBABILITY_BINS.values())[:-1]:
        bins += torch.gt(log_mu, math.log(edge), out=is_above)  # how many of the upper edges are below
    return bins


def _index(bins: Tensor) -> Tensor:
    """Bins whose numbers are floats, as an index; a log-probability that is no number is refused elsewhere."""
    return bins.nan_to_num_(0.0).long()


def _histogram(index: Tensor, bins: int, counted: Tensor) -> Tensor:
    """How much of ``counted`` is in each bin, ``[bins]``; added up one by one, so that sums have to be float64."""
    rows = torch.zeros(len(index), bins, device=index.device, dtype=counted.dtype)  # the responses side by side
    return rows.scatter_add_(1, index, counted).sum(0, dtype=torch.float64)


def quantile(counts: Sequence[float], edges: Sequence[float], share: float) -> float:
    """The smallest edge that at least ``share`` of what was counted is at or below; NaN when nothing was counted."""
    total = math.fsum(counts)
    if total == 0:
        return math.nan
    reached = enumerate(accumulate(counts))
    return next((edges[i] for i, below in reached if below >= share * total - 1e-9 * total), edges[-1])


def series(
    tokens: int,
    sums: Mapping[str, float],
    moments: Mapping[str, float],
    histograms: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """The metrics of one series (mismatch or drift), by name without its prefix.

    Args:
        tokens: how many there are; > 0.
        sums: of ``mismatch/kl`` and ``mismatch/abs_prob_diff_mean`` over them.
        moments: what ``measure_moments`` has made of them, summed.
        histograms: what ``measure_histograms`` has made of them, summed.
    """
    mean = {name: moment / tokens for name, moment in moments.items()}
    metrics = {
        "kl_k1": -mean["log_ratio"],
        "kl_k3": sums[names.KL] / tokens,
        "chi2": mean["chi2"],
        "ess": _effective_share(mean),
        "abs_prob_diff_mean": sums[names.ABS_PROB_DIFF_MEAN] / tokens,
        "abs_prob_diff_p50": quantile(histograms["abs_diff"], ABS_DIFF_EDGES, 0.5),
        "abs_prob_diff_p99": quantile(histograms["abs_diff"], ABS_DIFF_EDGES, 0.99),
        **_correlation(mean),
    }
    for name, share in (("ratio_p01", 0.01), ("ratio_p50", 0.5), ("ratio_p99", 0.99)):
        metrics[name] = math.exp(quantile(histograms["log_ratio"], LOG_RATIO_EDGES, share))
    counts, diffs = (_by_sign(histograms[name]) for name in ("probability", "abs_diff_by_probability"))
    for sign in ("_positive_advantage", "_negative_advantage"):
        if count := math.fsum(counts[sign]):
            metrics[f"abs_prob_diff_mean{sign}"] = math.fsum(diffs[sign]) / count
    return metrics


def _effective_share(mean: Mapping[str, float]) -> float:
    """(sum r)^2 / (n sum r^2): the effective sample size under the importance ratios, as a share of the n tokens."""
    ratio = 1.0 + mean["ratio_minus_one"]
    ratio_squared = 1.0 + 2.0 * mean["ratio_minus_one"] + mean["chi2"]
    return ratio**2 / ratio_squared if ratio_squared > 0 else 0.0


def by_probability(histograms: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The share of a series' tokens in each bin of mu and the mean abs(pi - mu) there, also by the sign of A."""
    total = math.fsum(histograms["probability"])
    counts, diffs = (_by_sign(histograms[name]) for name in ("probability", "abs_diff_by_probability"))
    metrics = {}
    for sign in counts if total else ():
        for name, count, diff in zip(PROBABILITY_BINS, counts[sign], diffs[sign], strict=True):
            metrics[f"share_{name}{sign}"] = count / total
            if count:
                metrics[f"abs_prob_diff_{name}{sign}"] = diff / count
    return metrics


def low_probability_share(histograms: Mapping[str, Sequence[float]], largest: float) -> float:
    """The share of the tokens whose mu is at most ``largest``, an edge of ``PROBABILITY_BINS``; 0 without tokens."""
    counts = _by_sign(histograms["probability"])[""]
    total = math.fsum(counts)
    low = math.fsum(count for count, edge in zip(counts, PROBABILITY_BINS.values(), strict=True) if edge <= largest)
    return low / total if total else 0.0


def _by_sign(bins: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """Bins of mu over all tokens, and over those of either sign of the advantage."""
    number = len(PROBABILITY_BINS)
    negative, zero, positive = (bins[i : i + number] for i in range(0, 3 * number, number))
    return {
        "": tuple(map(math.fsum, zip(negative, zero, positive, strict=True))),
        "_positive_advantage": tuple(positive),
        "_negative_advantage": tuple(negative),
    }


def _correlation(mean: Mapping[str, float]) -> dict[str, float]:
    """Pearson's, of pi and mu; none where one of them is constant.

    From the variance of their difference, which keeps 1 - correlation's digits.
    """
    variance_mu, variance_diff = (max(mean[f"{name}_squared"] - mean[name] ** 2, 0.0) for name in ("mu", "diff"))
    covariance = mean["mu_times_diff"] - mean["mu"] * mean["diff"]
    variance_pi = max(variance_mu + 2.0 * covariance + variance_diff, 0.0)
    scale = math.sqrt(variance_pi * variance_mu)
    if 2.0 * scale <= _SMALLEST_VARIANCE:
        return {}
    return {"correlation": min(max((variance_mu + covariance) / scale, -1.0), 1.0)}

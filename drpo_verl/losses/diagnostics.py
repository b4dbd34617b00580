"""What is measured of a step's tokens beyond the trust region: moments, histograms, bins of mu.

Micro-batches carry vectors of sums and of counts, which merge by addition, so that what is made of them is that of all
tokens of the step whatever it was cut into: means are exact, quantiles exact to the bin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from drpo_verl.losses.geometry import LOG_RATIO_BOUND, TokenRatio, where_above
from drpo_verl.metrics.bins import PROBABILITY_BINS

_PER_DECADE = 10
_SMALLEST = 1e-9
"""Below, two fp32 probabilities are as good as equal."""


def _magnitudes(largest: float) -> list[float]:
    """Edges from ``_SMALLEST`` up to ``largest``, ``_PER_DECADE`` to a decade."""
    count = math.ceil(_PER_DECADE * math.log10(largest / _SMALLEST))
    return [min(largest, _SMALLEST * 10 ** (i / _PER_DECADE)) for i in range(count + 1)]


ABS_DIFF_EDGES = _magnitudes(1.0)
_RATIO_MAGNITUDES = _magnitudes(LOG_RATIO_BOUND)
LOG_RATIO_EDGES = [-edge for edge in reversed(_RATIO_MAGNITUDES)] + _RATIO_MAGNITUDES

_CONSTANT = 1e-12
"""A variance below, of probabilities, may be that of rounding."""

_MOMENTS = (
    "tokens",
    "log_ratio",
    "k3",
    "chi2",
    "ratio",
    "ratio_squared",
    "abs_diff",
    "diff",
    "diff_squared",
    "pi",
    "pi_squared",
    "mu",
    "mu_squared",
    "positive",
    "abs_diff_positive",
    "negative",
    "abs_diff_negative",
)


def _magnitude_bin(magnitude: Tensor, bins: int) -> Tensor:
    """Which of ``_magnitudes``' edges is the first at or above; 0 to ``bins``. From the logarithm: no search."""
    per_e_fold = _PER_DECADE / math.log(10.0)
    # The logarithm of 0 takes a CPU 30 times longer than that of a number.
    return (
        magnitude.clamp(min=_SMALLEST)
        .log_()
        .add_(-math.log(_SMALLEST))
        .mul_(per_e_fold)
        .ceil_()
        .clamp_(0.0, float(bins))
    )


def _counts(bins: Tensor, number: int, counted: Tensor) -> Tensor:
    """How much of ``counted`` is in each bin, float64; ``bins`` holds their numbers, as floats."""
    # A log-probability that is no number has no bin; that it was there is found out, and refused, elsewhere.
    index = bins.flatten().nan_to_num_(0.0).long()
    # In float64: a bin's tokens are added one after the other.
    found = torch.zeros(number, device=bins.device, dtype=torch.float64)
    return found.scatter_add_(0, index, counted.flatten().double())


def _probability_bin(log_mu: Tensor) -> Tensor:
    """Which of ``PROBABILITY_BINS`` each token is in."""
    ones, level = torch.ones_like(log_mu), torch.zeros_like(log_mu)
    for edge in list(PROBABILITY_BINS.values())[:-1]:
        level += where_above(ones, log_mu, math.log(edge))
    return level


def vectors(tokens: TokenRatio, direction: Tensor, is_token: Tensor) -> dict[str, Tensor]:
    """What a micro-batch adds, still on the device.

    Args:
        tokens: of log-probabilities that are 0 where ``is_token`` is; ``[B, T]``.
        direction: sign(A), 0 where ``is_token`` is.
        is_token: 1 for a response token, else 0.
    """
    diff, ratio = tokens.prob_diff, tokens.ratio * is_token
    abs_diff = diff.abs()
    # Squares in float64: where a policy is almost certain, their variance is what is left of numbers close to 1.
    mu, pi = (log.exp().mul_(is_token).double() for log in (tokens.log_mu, tokens.log_pi))
    positive, negative = where_above(is_token, direction, 0.0), where_above(is_token, -direction, 0.0)
    moments = {
        "tokens": is_token.sum(),
        "log_ratio": tokens.log_ratio.sum(),
        "k3": (tokens.ratio_minus_one - tokens.log_ratio).sum(),
        "chi2": _dot(tokens.ratio_minus_one, tokens.ratio_minus_one),
        "ratio": ratio.sum(),
        "ratio_squared": _dot(ratio, ratio),
        "abs_diff": abs_diff.sum(),
        "diff": diff.sum(),
        "diff_squared": _dot(diff, diff),
        "pi": pi.sum(),
        "pi_squared": _dot(pi, pi),
        "mu": mu.sum(),
        "mu_squared": _dot(mu, mu),
        "positive": positive.sum(),
        "abs_diff_positive": _dot(abs_diff, positive),
        "negative": negative.sum(),
        "abs_diff_negative": _dot(abs_diff, negative),
    }
    largest = len(_RATIO_MAGNITUDES) - 1
    # Signed: the edges of negative values mirror those of positive ones, and around zero there is one bin.
    ratio_bin = _magnitude_bin(tokens.log_ratio.abs(), largest).mul_(tokens.log_ratio.sign()).add_(largest + 1.0)
    # One bin for each range of mu and sign of A: those of A < 0 first, then A = 0, then A > 0.
    number = len(PROBABILITY_BINS)
    probability_bin = _probability_bin(tokens.log_mu).add_(direction, alpha=number).add_(float(number))
    return {
        "moments": torch.stack([moments[name] for name in _MOMENTS]),
        "abs_diff": _counts(_magnitude_bin(abs_diff, len(ABS_DIFF_EDGES) - 1), len(ABS_DIFF_EDGES), is_token),
        "log_ratio": _counts(ratio_bin, len(LOG_RATIO_EDGES), is_token),
        "probability": _counts(probability_bin, 3 * number, is_token),
        "abs_diff_by_probability": _counts(probability_bin, 3 * number, abs_diff),
    }


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())


def quantile(counts: Sequence[float], edges: Sequence[float], share: float) -> float:
    """The smallest edge that at least ``share`` of what was counted is at or below; NaN when nothing was counted."""
    total = math.fsum(counts)
    if total == 0:
        return math.nan
    reached = enumerate(accumulate(counts))
    return next((edges[i] for i, below in reached if below >= share * total - 1e-9 * total), edges[-1])


def series(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The metrics of one series (mismatch or drift) from merged vectors; none without tokens."""
    moment = dict(zip(_MOMENTS, found["moments"], strict=True))
    n = moment["tokens"]
    if n == 0:
        return {}
    metrics = {
        "kl_k1": -moment["log_ratio"] / n,
        "kl_k3": moment["k3"] / n,
        "chi2": moment["chi2"] / n,
        "ess": moment["ratio"] ** 2 / (n * moment["ratio_squared"]) if moment["ratio_squared"] else 0.0,
        "abs_prob_diff_mean": moment["abs_diff"] / n,
        "abs_prob_diff_p50": quantile(found["abs_diff"], ABS_DIFF_EDGES, 0.5),
        "abs_prob_diff_p99": quantile(found["abs_diff"], ABS_DIFF_EDGES, 0.99),
        **_correlation(moment, n),
    }
    for name, share in (("ratio_p01", 0.01), ("ratio_p50", 0.5), ("ratio_p99", 0.99)):
        metrics[name] = math.exp(quantile(found["log_ratio"], LOG_RATIO_EDGES, share))
    for sign in ("positive", "negative"):
        if moment[sign]:
            metrics[f"abs_prob_diff_mean_{sign}_advantage"] = moment[f"abs_diff_{sign}"] / moment[sign]
    return metrics


def by_probability(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The share of a series' tokens in each bin of mu and the mean abs(pi - mu) there, also by the sign of A."""
    total = math.fsum(found["probability"])
    counts, diffs = (_by_sign(found[name]) for name in ("probability", "abs_diff_by_probability"))
    metrics = {}
    for sign in counts if total else ():
        for name, count, diff in zip(PROBABILITY_BINS, counts[sign], diffs[sign], strict=True):
            metrics[f"share_{name}{sign}"] = count / total
            if count:
                metrics[f"abs_prob_diff_{name}{sign}"] = diff / count
    return metrics


def _by_sign(bins: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """Bins of mu over all tokens, and over those of either sign of the advantage."""
    number = len(PROBABILITY_BINS)
    negative, zero, positive = (bins[i : i + number] for i in range(0, 3 * number, number))
    return {
        "": tuple(map(math.fsum, zip(negative, zero, positive, strict=True))),
        "_positive_advantage": tuple(positive),
        "_negative_advantage": tuple(negative),
    }


def _correlation(moment: Mapping[str, float], n: float) -> dict[str, float]:
    """Pearson's, of pi and mu; none where one of them is constant.

    From the variance of their difference, which keeps 1 - correlation's digits.
    """
    variances = {
        name: max(moment[f"{name}_squared"] / n - (moment[name] / n) ** 2, 0.0) for name in ("pi", "mu", "diff")
    }
    scale = 2.0 * math.sqrt(variances["pi"] * variances["mu"])
    if scale <= _CONSTANT:
        return {}
    correlation = (variances["pi"] + variances["mu"] - variances["diff"]) / scale
    return {"correlation": min(max(correlation, -1.0), 1.0)}

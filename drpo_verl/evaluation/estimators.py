"""Estimators of avg@k and pass@k, with intervals over problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from drpo_verl.run_folder.steps import wilson_interval

RESAMPLES = 10_000
_DRAWS_AT_ONCE = 1_000_000  # bounds the memory


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its interval; all values in [0, 1].

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
        method: how the interval was made: "bootstrap" or "wilson".
    """

    value: float
    low: float
    high: float
    method: str


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Estimate the probability that one of k samples is right, without bias.

    This is 1 - C(n - c, k) / C(n, k), equation 1 of Chen et al. 2021 (arXiv 2107.03374).

    Args:
        samples: n, number of samples of the problem.
        right: c, number of right ones among them.
        k: number of samples of which one has to be right; 1 <= k <= n.

    Raises:
        ValueError: k is not within 1 and n, or c not within 0 and n.
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} of {samples} samples, {right} of them right, is not defined")
    return 1 - comb(samples - right, k) / comb(samples, k)


def mean_over_problems(values: Sequence[float], *, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """Return the mean of one value per problem, with an interval for the mean over all problems like these.

    The problems are resampled with replacement, each with all of its samples (a cluster bootstrap), and the interval
    has the percentiles of the means. Samples of a problem are not independent trials of the benchmark: an interval over
    all of them would be too narrow. Where every problem has the same value, resampling shows no spread at all, which
    comes from the small number of problems and is no certainty: Wilson's interval then takes each for one trial.

    Args:
        values: one value in [0, 1] per problem; at least one.
        seed: seed of the resampling.
        confidence: probability that the interval is meant to cover.
    """
    per_problem: NDArray[np.float64] = np.asarray(values, np.float64)
    count, value = len(per_problem), float(per_problem.mean())
    if np.ptp(per_problem) == 0:
        return Estimate(value, *wilson_interval(value, count, confidence), "wilson")
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // count)
    means = [
        per_problem[generator.integers(0, count, (min(rows, RESAMPLES - start), count))].mean(1)
        for start in range(0, RESAMPLES, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), "bootstrap")

"""avg@k and pass@k with intervals over problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from drpo_verl.run_folder.steps import wilson_interval

RESAMPLES = 10_000
_DRAWS = 1_000_000
"""At a time, for the memory they take."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems.

    Attributes:
        value: in [0, 1].
        low: of the interval.
        high: of the interval.
        method: of the interval: "bootstrap" or "wilson".
    """

    value: float
    low: float
    high: float
    method: str


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, equation 1): 1 - C(n - c, k) / C(n, k).

    Args:
        samples: n, of the problem.
        right: c, how many of them are right.
        k: of how many one has to be right; 1 <= k <= n.

    Raises:
        ValueError: k is not within 1 and n, or c not within 0 and n.
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} of {samples} samples, {right} of them right, is not defined")
    return 1 - comb(samples - right, k) / comb(samples, k)


def over_problems(values: Sequence[float], *, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """The mean of one figure a problem, with an interval for the mean over all problems like these.

    The problems are resampled with replacement, each with all of its samples (a cluster bootstrap), and the interval is
    that of the percentiles. The samples of a problem are not independent trials of the benchmark: an interval over all
    of them would be too narrow. Where every problem has the same value, resampling shows no spread at all, which is the
    problems' small number and no certainty: then it is Wilson's, as if each problem were one trial.

    Args:
        values: in [0, 1], one a problem; at least one.
        seed: of the resampling.
        confidence: of the interval.
    """
    each: NDArray[np.float64] = np.asarray(values, np.float64)
    value = float(each.mean())
    if np.ptp(each) == 0:
        low, high = wilson_interval(value, len(each), confidence)
        return Estimate(value, low, high, "wilson")
    generator = np.random.default_rng(seed)
    means = [
        each[generator.integers(0, len(each), (resamples, len(each)))].mean(1)
        for resamples in _portions(RESAMPLES, max(1, _DRAWS // len(each)))
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), "bootstrap")


def _portions(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]

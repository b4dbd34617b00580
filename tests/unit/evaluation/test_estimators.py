"""The estimators against counting, and the interval against what it promises."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_verl.evaluation.estimators import mean_over_problems, pass_at_k


@pytest.mark.parametrize("samples", range(1, 9))
def test_pass_at_k_counts_the_draws_without_replacement(samples: int) -> None:
    for right in range(samples + 1):
        outcomes = [1] * right + [0] * (samples - right)
        for k in range(1, samples + 1):
            draws = [any(draw) for draw in combinations(outcomes, k)]
            assert pass_at_k(samples, right, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


@given(st.integers(1, 200), st.data())
def test_pass_at_k_is_monotonic_and_ends_where_it_must(samples: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, samples))
    values = [pass_at_k(samples, right, k) for k in range(1, samples + 1)]
    assert values[0] == pytest.approx(right / samples)
    assert values[-1] == float(right > 0)
    assert all(low <= high for low, high in pairwise(values))


def test_pass_at_k_is_unbiased() -> None:
    generator = np.random.default_rng(0)
    p, samples, k = 0.2, 10, 4
    values = [pass_at_k(samples, int(right), k) for right in generator.binomial(samples, p, 20_000)]
    assert np.mean(values) == pytest.approx(1 - (1 - p) ** k, abs=0.008)


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_what_is_not_defined_is_refused(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(samples, right, k)


def test_the_interval_is_of_the_mean_over_all_resamples() -> None:
    values = [0.0, 0.25, 1.0]
    means = [np.mean(draw) for draw in np.stack(np.meshgrid(values, values, values), -1).reshape(-1, 3)]
    estimate = mean_over_problems(values)
    assert estimate.value == pytest.approx(np.mean(values)) and estimate.method == "bootstrap"
    # All 27 resamples are equally likely: the ends are the 2.5 % and the 97.5 % of them.
    assert (estimate.low, estimate.high) == (np.quantile(means, 0.025, method="inverted_cdf"), 1.0)


def test_the_interval_covers_and_is_clustered() -> None:
    generator = np.random.default_rng(1)
    covered, width, k = 0, [], 16
    for run in range(300):
        skill = generator.beta(0.5, 0.5, 60)  # problems are easy or hard: samples of one are alike
        each = generator.binomial(k, skill) / k
        estimate = mean_over_problems(each.tolist(), seed=run)
        covered += estimate.low <= 0.5 <= estimate.high
        width.append(estimate.high - estimate.low)
    assert 0.90 < covered / 300 < 0.985
    # As if the samples were independent, it would be 0.06 wide, and wrong.
    assert 0.15 < np.mean(width) < 0.21


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_problems_that_are_all_alike_are_not_certainty(value: float) -> None:
    estimate = mean_over_problems([value] * 30)
    assert estimate.value == value and estimate.method == "wilson"
    assert estimate.high - estimate.low == pytest.approx(0.1135, abs=1e-3)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [0.1, 0.5, 0.9, 0.3]
    assert mean_over_problems(values, seed=3) == mean_over_problems(values, seed=3)

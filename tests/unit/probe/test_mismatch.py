"""The probe's figures against their definitions, on tokens of which all is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import tokens

from drpo_verl.probe.mismatch import BINS, EDGES, Tokens, boundary, by_probability, suggest_delta, summarise

# mu, pi
PAIRS = [(0.5, 0.6), (0.05, 0.02), (0.9, 0.9), (2e-5, 8e-5)]
FOUR = Tokens(*(np.log(np.array(column)) for column in zip(*PAIRS, strict=True)))


def test_the_figures_over_all_tokens() -> None:
    figures = summarise(FOUR)
    ratios = [pi / mu for mu, pi in PAIRS]
    diffs = [abs(pi - mu) for mu, pi in PAIRS]
    expected = {
        "kl_k1": np.mean([-math.log(r) for r in ratios]),
        "kl_k3": np.mean([r - 1 - math.log(r) for r in ratios]),
        "chi2": np.mean([(r - 1) ** 2 for r in ratios]),
        "ess": sum(ratios) ** 2 / (4 * sum(r * r for r in ratios)),
        "correlation": np.corrcoef(*zip(*PAIRS, strict=True))[0, 1],
        "behaviour_log_prob_mean": np.mean([math.log(mu) for mu, _ in PAIRS]),
        "abs_prob_diff_mean": np.mean(diffs),
        "abs_prob_diff_p50": np.median(diffs),
        "abs_prob_diff_max": 0.1,
        "ratio_p50": np.median(ratios),
        "ratio_max": 4.0,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["abs_prob_diff_p99"] <= figures["abs_prob_diff_max"]
    assert figures["ratio_p01"] < 1 < figures["ratio_p99"]


def test_bins_hold_their_upper_ends_and_every_token_once() -> None:
    middles = [5e-5, 5e-4, 5e-3, 0.05, 0.3, 0.7, 0.95, 0.999]
    spread = Tokens(np.log(np.array(middles)), np.log(np.array(middles)))
    assert spread.bins.tolist() == list(range(len(BINS)))
    assert len(BINS) == len(EDGES) + 1
    rows = by_probability(tokens(5000))
    assert [row["bin"] for row in rows] == list(BINS)
    assert sum(row["tokens"] for row in rows) == 5000
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)


def test_a_bin_has_the_figures_of_its_tokens() -> None:
    rows = {row["bin"]: row for row in by_probability(FOUR)}
    low = rows["1e-2_0.1"]
    assert low["tokens"] == 1 and low["share"] == 0.25
    for name in ("mean", "p50", "p99", "max"):
        assert low[f"abs_prob_diff_{name}"] == pytest.approx(0.03)
        assert low[f"ratio_error_{name}"] == pytest.approx(0.6)
    assert rows["gt_0.99"] == {"bin": "gt_0.99", "tokens": 0, "share": 0.0}


def test_rare_tokens_have_large_ratios_and_small_differences() -> None:
    # What the picture shows: the same error of the log-odds everywhere.
    rows = {row["bin"]: row for row in by_probability(tokens(20_000))}
    rare, even = rows["le_1e-4"], rows["0.1_0.5"]
    assert rare["ratio_error_p50"] > even["ratio_error_p50"]
    assert rare["abs_prob_diff_p99"] < 0.01 * even["abs_prob_diff_p50"]


def test_equal_engines() -> None:
    same = Tokens(np.log(np.full(3, 0.5)), np.log(np.full(3, 0.5)))
    figures = summarise(same)
    assert figures["abs_prob_diff_max"] == 0 and figures["ess"] == 1 and figures["correlation"] == 1
    suggested = suggest_delta(same, 0.01)
    assert suggested["delta"] == {"delta": 0.0, "outside": 0, "diverging": 0}


def test_the_suggested_delta_leaves_the_share_outside() -> None:
    mu = np.full(1000, 0.5)
    pi = mu + np.arange(1, 1001) / 4000  # 1,000 different distances up to 0.25
    suggested = suggest_delta(Tokens(np.log(mu), np.log(pi)), 0.01)
    assert suggested["share"] == 0.01
    assert suggested["delta"] == {"delta": pytest.approx(0.2475), "outside": 10, "diverging": 1000}
    assert suggested["delta_high"] == suggested["delta"]
    assert suggested["delta_low"]["diverging"] == 0


def test_rising_and_falling_tokens_have_deltas_of_their_own() -> None:
    suggested = suggest_delta(FOUR, 0.01)
    assert suggested["delta"]["diverging"] == 3  # 0.9 has not moved
    assert suggested["delta_high"] == {"delta": pytest.approx(0.1), "outside": 0, "diverging": 2}
    assert suggested["delta_low"] == {"delta": pytest.approx(0.03), "outside": 0, "diverging": 1}


@given(
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=200),
    st.floats(0.001, 0.999),
)
def test_no_smaller_threshold_would_do(distances: list[float], share: float) -> None:
    values = np.array(distances)
    found = boundary(values, share)
    moved = values[values > 0]
    assert found["diverging"] == len(moved)
    assert found["outside"] == (moved > found["delta"]).sum() <= share * len(moved)
    smaller = moved[moved < found["delta"]]
    if len(smaller):
        assert (moved > smaller.max()).sum() > share * len(moved)

"""Moments, quantiles and bins against NumPy's over all tokens, however the step was cut."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drpo_verl.losses import OBJECTIVES, TokenStatistics, TrustRegion, step_metrics, token_loss
from drpo_verl.losses.diagnostics import ABS_DIFF_EDGES, LOG_RATIO_EDGES, PROBABILITY_BINS, quantile

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
REGION = TrustRegion(0.1, 0.1)


def _batch(seed: int, spread: float = 0.5, rows: int = 12, width: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    log_mu = -(torch.rand(rows, width, generator=generator) ** 3) * 12
    log_pi = (log_mu + spread * torch.randn(rows, width, generator=generator)).clamp(max=0)
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, width)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    return log_pi, log_mu, advantages, torch.arange(width) < lengths


def _parts(batch: Batch, sizes: list[int], drift_from: int) -> list[TokenStatistics]:
    """As micro-batches; those from ``drift_from`` on belong to later mini-batches."""
    parts = []
    for number, micro in enumerate(zip(*(x.split(sizes) for x in batch), strict=True)):
        statistics = token_loss(OBJECTIVES["drpo"], REGION, *micro).accumulators.to_host()
        parts.append(replace(statistics, drift=number >= drift_from))
    return parts


def _expected(log_pi: Tensor, log_mu: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, float]:
    log_pi_, log_mu_, advantage = (x[mask].double().numpy() for x in (log_pi, log_mu, advantages))
    pi, mu = np.exp(log_pi_), np.exp(log_mu_)
    ratio, diff = pi / mu, np.abs(pi - mu)
    return {
        "kl_k1": -np.log(ratio).mean(),
        "kl_k3": (ratio - 1 - np.log(ratio)).mean(),
        "chi2": ((ratio - 1) ** 2).mean(),
        "ess": ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum()),
        "abs_prob_diff_mean": diff.mean(),
        "abs_prob_diff_max": diff.max(),
        "ratio_max": ratio.max(),
        "correlation": np.corrcoef(pi, mu)[0, 1],
        "abs_prob_diff_mean_positive_advantage": diff[advantage > 0].mean(),
        "abs_prob_diff_mean_negative_advantage": diff[advantage < 0].mean(),
    }


@settings(max_examples=20)
@given(cuts=st.sets(st.integers(1, 11), min_size=1, max_size=11), seed=st.integers(0, 20), data=st.data())
def test_mismatch_and_drift_are_each_over_their_own_tokens(cuts: set[int], seed: int, data: st.DataObject) -> None:
    batch = _batch(seed)
    ends = [0, *sorted(cuts), 12]
    sizes = [b - a for a, b in pairwise(ends)]
    drift_from = data.draw(st.integers(1, len(sizes) - 1))
    metrics = step_metrics(_parts(batch, sizes, drift_from))
    row = ends[drift_from]
    for prefix, rows in (("inference_mismatch", slice(0, row)), ("policy_drift", slice(row, None))):
        part = tuple(x[rows] for x in batch)
        if not (part[2][part[3]] > 0).any() or not (part[2][part[3]] < 0).any():
            continue
        expected = {f"{prefix}/{name}": value for name, value in _expected(*part).items()}  # type: ignore[arg-type]
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_drift_from_a_recomputed_anchor_is_over_the_tokens_after_the_first_update() -> None:
    log_pi, log_mu, advantages, mask = _batch(2)
    log_pi_old = (log_mu + 0.2).clamp(max=0)
    log_pi_old[:5] = log_pi[:5]  # pi is pi_old in the first mini-batch

    def part(rows: slice, drift: bool) -> TokenStatistics:
        micro = (each[rows] for each in (log_pi, log_mu, advantages, mask))
        loss = token_loss(OBJECTIVES["drpo_decoupled"], REGION, *micro, log_anchor=log_pi_old[rows])
        return replace(loss.accumulators.to_host(), drift=drift)

    parts = [part(slice(0, 5), False), part(slice(5, 7), True), part(slice(7, 12), True)]
    metrics = step_metrics(parts)
    expected = (log_pi.exp() - log_pi_old.exp()).abs()[5:][mask[5:]].mean().item()
    assert metrics["policy_drift/anchor_abs_prob_diff_mean"] == pytest.approx(expected, rel=1e-5)
    assert 0 < metrics["trust_region/anchor_abs_prob_diff_mean"] < expected  # over all tokens
    names = {"policy_drift/anchor_abs_prob_diff_mean", "inference_mismatch/anchor_abs_prob_diff_mean"}
    assert not names & set(step_metrics(parts[:1])) and not names & set(step_metrics(_parts(_batch(2), [5, 7], 1)))


@pytest.mark.parametrize("spread", [1e-6, 1e-2, 1.0])
def test_quantiles_are_exact_to_the_bin(spread: float) -> None:
    batch = _batch(0, spread, rows=64)
    metrics = step_metrics(_parts(batch, [16] * 4, 4))
    log_ratio = (batch[0] - batch[1])[batch[3]].numpy()
    diff = np.abs((batch[0].double().exp() - batch[1].double().exp())[batch[3]].numpy())
    one_bin = 10**0.1 * (1 + 1e-5)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        exact = np.quantile(diff, share, method="inverted_cdf")
        assert exact / (1 + 1e-4) <= metrics[f"inference_mismatch/abs_prob_diff_{name}"] <= max(exact * one_bin, 1e-9)
    for name, share in (("p01", 0.01), ("p99", 0.99)):
        exact = np.quantile(log_ratio, share, method="inverted_cdf")
        found = math.log(metrics[f"inference_mismatch/ratio_{name}"])
        assert exact - 1e-9 <= found + 2e-9 and abs(found - exact) <= abs(exact) * (one_bin - 1) + 2e-9


def test_bins_of_the_behaviour_probability() -> None:
    batch = _batch(3)
    metrics = step_metrics(_parts(batch, [6, 6], 1))
    for prefix, rows in (("inference_mismatch", slice(0, 6)), ("policy_drift", slice(6, 12))):
        mask = batch[3][rows]
        pi, mu, advantage = (x[rows].double()[mask].numpy() for x in batch[:3])
        pi, mu = np.exp(pi), np.exp(mu)
        for sign, of_sign in (
            ("", True),
            ("_positive_advantage", advantage > 0),
            ("_negative_advantage", advantage < 0),
        ):
            low, shares = -1.0, 0.0
            for name, high in PROBABILITY_BINS.items():
                inside = (mu > low) & (mu <= high) & of_sign
                low = high
                shares += metrics[f"{prefix}_by_prob/share_{name}{sign}"]
                assert metrics[f"{prefix}_by_prob/share_{name}{sign}"] == pytest.approx(inside.mean(), abs=1e-6)
                difference = f"{prefix}_by_prob/abs_prob_diff_{name}{sign}"
                if inside.any():
                    assert metrics[difference] == pytest.approx(np.abs(pi - mu)[inside].mean(), rel=1e-4)
                else:
                    assert difference not in metrics
            assert shares == pytest.approx(np.mean(np.broadcast_to(of_sign, mu.shape)))


def test_the_correlation_of_a_policy_that_is_almost_certain() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-2, 1e-3, 1e-4):
        log_mu = -scale * torch.rand(16, 4096, generator=generator)
        log_pi = (log_mu * (1 + 0.3 * torch.randn(16, 4096, generator=generator))).clamp(max=0)
        ones = torch.ones(16, 4096)
        metrics = step_metrics(
            [token_loss(OBJECTIVES["drpo"], REGION, log_pi, log_mu, ones, ones).accumulators.to_host()]
        )
        expected = np.corrcoef(log_pi.double().exp().flatten(), log_mu.double().exp().flatten())[0, 1]
        assert metrics["inference_mismatch/correlation"] == pytest.approx(expected, rel=1e-3)


def test_a_bin_of_many_tokens_is_exact() -> None:
    log_mu = torch.full((16, 16384), math.log(0.3))
    log_pi = log_mu + 0.0023
    ones = torch.ones_like(log_mu)
    metrics = step_metrics([token_loss(OBJECTIVES["drpo"], REGION, log_pi, log_mu, ones, ones).accumulators.to_host()])
    expected = (log_pi[0, 0].double().exp() - log_mu[0, 0].double().exp()).item()
    assert metrics["inference_mismatch_by_prob/abs_prob_diff_0.1_0.5"] == pytest.approx(expected, rel=1e-6)
    assert "inference_mismatch/correlation" not in metrics  # of constants there is none


def test_how_much_of_the_gradient_is_removed() -> None:
    log_mu = torch.log(torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    log_pi = torch.log(torch.tensor([[0.55, 0.45, 0.8, 0.5]]))  # half way out, half way in, far outside, not moved
    statistics = token_loss(OBJECTIVES["drpo"], REGION, log_pi, log_mu, torch.ones(1, 4), torch.ones(1, 4))
    metrics = step_metrics([statistics.accumulators.to_host()])
    assert metrics["trust_region/gradient_removed_frac"] == pytest.approx((0.5 * 1.1 + 1.6) / (1.1 + 0.9 + 1.6 + 1.0))
    assert metrics["trust_region/attenuated_frac"] == 0.25 and metrics["trust_region/corrective_frac"] == 0.25


def test_a_step_of_one_mini_batch_has_no_drift_and_one_without_diagnostics_neither_series() -> None:
    batch = _batch(1)
    metrics = step_metrics(_parts(batch, [12], 1))
    assert not any(name.startswith("policy_drift/") for name in metrics)
    bare = token_loss(OBJECTIVES["drpo"], REGION, *batch, diagnostics=False).accumulators.to_host()
    assert not bare.moments and not bare.histograms and set(step_metrics([bare])) == set(bare.metrics())


def test_a_quantile_of_nothing_is_no_number() -> None:
    assert math.isnan(quantile([0.0] * 3, [1.0, 2.0, 3.0], 0.5))
    assert (
        quantile([1.0, 0.0, 1.0], [1.0, 2.0, 3.0], 0.5) == 1.0
        and quantile([1.0, 0.0, 1.0], [1.0, 2.0, 3.0], 0.51) == 3.0
    )
    for edges in (ABS_DIFF_EDGES, LOG_RATIO_EDGES):
        assert all(low < high for low, high in pairwise(edges))

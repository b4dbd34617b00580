"""Divergences over a partition against those over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drpo_verl.losses.partition import LARGEST_DIVERGENCE, Divergence, kullback_leibler, total_variation

VOCABULARY = 12


def _full_tv(log_mu: Tensor, log_pi: Tensor) -> Tensor:
    return (log_mu.exp() - log_pi.exp()).abs().sum(-1) / 2


def _full_kl(log_mu: Tensor, log_pi: Tensor) -> Tensor:
    return (log_mu.exp() * (log_mu - log_pi)).sum(-1)


@st.composite
def policies(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """(log mu, log pi) over a small vocabulary in float64, peaked or flat, and a sampled token."""
    seed, rows = draw(st.integers(0, 10_000)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(seed)
    temperature = draw(st.sampled_from([0.2, 1.0, 4.0]))
    scores = temperature * torch.randn(2, rows, VOCABULARY, generator=generator, dtype=torch.float64)
    log_mu, log_pi = scores.log_softmax(-1)
    return log_mu, log_pi, torch.randint(VOCABULARY, (rows, 1), generator=generator)


def _over_top_k(divergence: Divergence, log_mu: Tensor, log_pi: Tensor, sampled: Tensor, k: int) -> Tensor:
    top = log_mu.topk(k, dim=-1).indices
    ids = torch.cat([sampled, top], dim=-1)
    listed = torch.cat([torch.ones_like(sampled), top != sampled], dim=-1).double()
    return divergence(log_mu.gather(-1, ids), log_pi.gather(-1, ids), listed)


CASES = pytest.mark.parametrize(
    ("divergence", "full"), [(total_variation, _full_tv), (kullback_leibler, _full_kl)], ids=["tv", "kl"]
)


@CASES
@given(case=policies())
@settings(max_examples=60)
def test_over_the_whole_vocabulary_it_is_exact(
    divergence: Divergence, full: Divergence, case: tuple[Tensor, ...]
) -> None:
    log_mu, log_pi, sampled = case
    exact = full(log_mu, log_pi)  # type: ignore[call-arg]
    torch.testing.assert_close(
        _over_top_k(divergence, log_mu, log_pi, sampled, VOCABULARY), exact, rtol=1e-6, atol=1e-9
    )


@CASES
@given(case=policies())
@settings(max_examples=60)
def test_it_never_exceeds_the_full_divergence_and_grows_with_k(
    divergence: Divergence, full: Divergence, case: tuple[Tensor, ...]
) -> None:
    log_mu, log_pi, sampled = case
    by_k = torch.stack([_over_top_k(divergence, log_mu, log_pi, sampled, k) for k in range(1, VOCABULARY + 1)])
    assert bool((by_k <= full(log_mu, log_pi) + 1e-9).all())  # type: ignore[call-arg]
    assert bool((by_k.diff(dim=0) >= -1e-9).all())


@given(case=policies())
@settings(max_examples=60)
def test_it_is_never_below_the_binary_divergence(case: tuple[Tensor, ...]) -> None:
    log_mu, log_pi, sampled = case
    binary = (log_mu.exp() - log_pi.exp()).gather(-1, sampled).squeeze(-1).abs()
    assert bool((_over_top_k(total_variation, log_mu, log_pi, sampled, 3) >= binary - 1e-12).all())


@pytest.mark.parametrize("divergence", [total_variation, kullback_leibler])
def test_it_is_finite_where_a_policy_is_certain(divergence: Divergence) -> None:
    log_mu = torch.tensor([[0.0, -60_000.0], [-60_000.0, 0.0]])  # what float16 makes of a probability of 0
    log_pi = torch.tensor([[-40.0, 0.0], [-1e-9, -20.0]])
    result = divergence(log_mu, log_pi, torch.ones(2, 2))
    assert result.isfinite().all() and (result >= 0).all()
    assert divergence(log_mu, log_mu, torch.ones(2, 2)).abs().max() < 1e-6


def test_a_token_that_mu_excludes_adds_nothing_whatever_pi_is() -> None:
    # Its log mu travels as the least number of fp16, and exp makes 0 of that; log pi may be -inf there, too.
    log_mu = torch.tensor([[0.6, 0.4]]).log().float()
    log_pi = torch.tensor([[0.5, 0.5]]).log().float()
    excluded = torch.cat([log_mu, torch.tensor([[-65504.0]])], dim=1)
    listed, rest = torch.ones(1, 3), torch.zeros(1)
    for log_pi_there in (-5.0, -float("inf")):
        wider = torch.cat([log_pi, torch.tensor([[log_pi_there]])], dim=1)
        for divergence in (total_variation, kullback_leibler):
            assert divergence(excluded, wider, listed, rest).isfinite().all()
    assert kullback_leibler(excluded, wider, listed, rest) == pytest.approx(
        kullback_leibler(log_mu, log_pi, listed[:, :2], rest).item(), abs=1e-6
    )


def test_a_likely_token_that_pi_excludes_is_far_and_not_infinitely_far() -> None:
    log_mu, log_pi = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, -float("inf")]])
    assert kullback_leibler(log_mu, log_pi, torch.ones(1, 2), torch.zeros(1)) == LARGEST_DIVERGENCE

"""Every objective has the value and the gradient of the paper's formula, in fp32, on any input."""

from __future__ import annotations

from functools import partial

import oracle
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss

from drpo_verl.objectives import OBJECTIVES, TrustRegion, token_loss

AGGREGATIONS = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]

# From certainty, and closer to it than fp32 can write 1 - p, to far below what is ever sampled.
log_probs = st.one_of(
    st.floats(-45.0, 0.0, width=32),
    st.floats(-(2.0**-10), 0.0, width=32),
    st.sampled_from([0.0, -(2.0**-24), -1e-7, -1e-3, -0.6931472, -20.0, -40.0]),
)
advantages = st.one_of(st.floats(-4.0, 4.0, width=32, allow_subnormal=False), st.sampled_from([0.0, 1.0, -1.0]))
deltas = st.sampled_from([0.01, 0.05, 0.2, 0.5, 1.0, 12.5])


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))

    def tensor(elements: st.SearchStrategy[float]) -> Tensor:
        values = draw(st.lists(elements, min_size=rows * width, max_size=rows * width))
        return torch.tensor(values, dtype=torch.float32).reshape(rows, width)

    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return tensor(log_probs), tensor(log_probs), tensor(advantages), mask


def _near_a_boundary(name: str, log_pi: Tensor, log_mu: Tensor, delta: float) -> bool:
    # A hard mask is a step: within fp32 rounding of its edge either side is right. And so is the clamp of log r.
    divergence = oracle.bernoulli_kl(log_pi, log_mu) if name.endswith("kl") else (log_pi.exp() - log_mu.exp()).abs()
    at_edge = name != "drpo" and bool(((divergence - delta).abs() < 1e-4 * max(1.0, delta)).any())
    return at_edge or bool((((log_pi - log_mu).abs() - 20.0).abs() < 1e-4).any())


def _loss_and_grad(loss: Tensor, log_pi: Tensor) -> tuple[float, Tensor]:
    (gradient,) = torch.autograd.grad(loss, log_pi)
    return loss.item(), gradient


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("name", list(OBJECTIVES))
@settings(max_examples=40, deadline=None)
@given(batch=batches(), delta=deltas)
def test_gradient_is_that_of_the_papers_objective(
    name: str, cap: float | None, aggregation: str, batch: tuple[Tensor, Tensor, Tensor, Tensor], delta: float
) -> None:
    log_pi, log_mu, advantage, mask = batch
    assume(mask.any())
    exact_pi, exact_mu = log_pi.double().requires_grad_(), log_mu.double()
    assume(not _near_a_boundary(name, exact_pi.detach(), exact_mu, delta))
    objective = partial(oracle.OBJECTIVES[name], delta=delta)
    if name == "drpo":
        cap = None
    elif cap is not None:
        objective = partial(objective, cap=cap)
    aggregate = partial(agg_loss, loss_mask=mask, loss_agg_mode=aggregation)

    expected, expected_gradient = _loss_and_grad(
        aggregate(-objective(exact_pi, exact_mu, advantage.double())), exact_pi
    )
    log_pi.requires_grad_()
    ours = token_loss(OBJECTIVES[name], TrustRegion(delta, delta, cap), log_pi, log_mu, advantage, mask)
    value, gradient = _loss_and_grad(aggregate(ours.loss), log_pi)

    # Relative to the terms: where r A and its regulariser cancel, near the boundary, fp32 inputs have no more digits.
    terms = _term_magnitude(exact_pi.detach(), exact_mu, advantage.double(), delta if name == "drpo" else None)
    share = torch.autograd.grad(aggregate(terms.requires_grad_()), terms)[0]
    assert bool(((gradient - expected_gradient).abs() <= 1e-5 * terms.detach() * share + 1e-12).all())
    if not ((log_pi.detach() - log_mu) > 20.0).any():  # beyond, the objective is constant, and its value no matter
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-12 + 1e-5 * (terms.detach() * share).sum().item())


def _term_magnitude(log_pi: Tensor, log_mu: Tensor, advantages: Tensor, delta: float | None) -> Tensor:
    ratio = (log_pi - log_mu).clamp(-20.0, 20.0).exp()
    penalty = 0.0 if delta is None else (log_pi.exp() - log_mu.exp()).abs() / delta
    return advantages.abs() * ratio * (1.0 + penalty)


@given(log_pi=log_probs, log_mu=log_probs)
@example(log_pi=0.0, log_mu=0.0)
@example(log_pi=0.0, log_mu=-45.0)
@example(log_pi=-45.0, log_mu=0.0)
@settings(max_examples=300, deadline=None)
def test_every_objective_is_finite_everywhere(log_pi: float, log_mu: float) -> None:
    pi, mu = torch.tensor([[log_pi]], requires_grad=True), torch.tensor([[log_mu]])
    for name, objective in OBJECTIVES.items():
        for sign in (-1.0, 1.0):
            result = token_loss(objective, TrustRegion(0.2, 0.2), pi, mu, torch.tensor([[sign]]), torch.ones(1, 1))
            (gradient,) = torch.autograd.grad(result.loss.sum(), pi)
            metrics = result.accumulators.to_host().metrics()
            assert result.loss.isfinite().all() and gradient.isfinite().all(), name
            assert all(torch.tensor(list(metrics.values())).isfinite()), metrics


@given(log_pi=log_probs, log_mu=log_probs)
@settings(max_examples=300, deadline=None)
def test_drpo_weight_is_bounded_and_vanishes_at_the_boundary(log_pi: float, log_mu: float) -> None:
    delta = 0.3
    result = token_loss(
        OBJECTIVES["drpo"],
        TrustRegion(delta, delta),
        torch.tensor([[log_pi]]),
        torch.tensor([[log_mu]]),
        torch.ones(1, 1),
        torch.ones(1, 1),
    )
    weight = result.accumulators.to_host().metrics()["trust_region/weight_mean"]
    exact = 1 - (torch.tensor(log_pi).double().exp() - torch.tensor(log_mu).double().exp()).item() / delta
    assert weight == pytest.approx(exact, abs=1e-5)
    assert 1 - 1 / delta - 1e-5 <= weight <= 1 + 1 / delta + 1e-5


def test_thresholds_of_the_two_directions_are_separate() -> None:
    log_mu = torch.full((1, 2), 0.5).log()
    log_pi = torch.tensor([[0.7, 0.3]]).log().requires_grad_()  # one rises by 0.2, one falls by 0.2
    advantages = torch.tensor([[1.0, -1.0]])  # both diverging
    result = token_loss(
        OBJECTIVES["dppo_binary_tv"], TrustRegion(0.1, 0.3), log_pi, log_mu, advantages, torch.ones(1, 2)
    )
    (gradient,) = torch.autograd.grad(result.loss.sum(), log_pi)
    assert gradient[0, 0] == pytest.approx(-1.4) and gradient[0, 1] == 0.0
    metrics = result.accumulators.to_host().metrics()
    assert metrics["trust_region/outside_frac"] == 0.5
    assert metrics["trust_region/outside_frac_negative_advantage"] == 0.5
    assert metrics["trust_region/outside_frac_positive_advantage"] == 0.0


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_fp32_inside_whatever_autocast_says(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    log_mu = -3 * torch.rand(4, 64, generator=generator)
    log_pi = (log_mu + 0.1 * torch.randn(4, 64, generator=generator)).clamp(max=0).requires_grad_()
    advantages, mask = torch.randn(4, 64, generator=generator), torch.ones(4, 64, dtype=torch.bool)

    def run() -> tuple[Tensor, Tensor, dict[str, float]]:
        result = token_loss(OBJECTIVES[name], TrustRegion(0.1, 0.1), log_pi, log_mu, advantages, mask)
        (gradient,) = torch.autograd.grad(result.loss.sum(), log_pi)
        return result.loss, gradient, dict(result.accumulators.to_host().metrics())

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = run()
    assert torch.equal(plain[0], under_autocast[0]) and torch.equal(plain[1], under_autocast[1])
    assert plain[2] == under_autocast[2]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_at_most_two_fp32_tensors_are_saved_for_backward(name: str) -> None:
    shape = (8, 32)
    log_pi = (-torch.rand(shape)).requires_grad_()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = token_loss(
            OBJECTIVES[name],
            TrustRegion(0.1, 0.1, 5.0),
            log_pi,
            -torch.rand(shape),
            torch.randn(shape),
            torch.ones(shape),
        )
        agg_loss(result.loss, torch.ones(shape, dtype=torch.bool), "seq-mean-token-sum-norm").backward()
    full = [tensor for tensor in saved if tensor.shape == shape and tensor.dtype == torch.float32]
    assert 1 <= len(full) <= 2

"""Every objective has the value and the gradient of the paper's formula, in fp32, on any input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import oracle
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss

from drpo_verl.losses import OBJECTIVES, PENALTIES, Objective, PrefixBudget, TokenRatio, TrustRegion, token_loss
from drpo_verl.losses.enforcement import HARD_MASK

REGION = TrustRegion(0.1, 0.1, region_delta=0.05, prefix_budget=PrefixBudget(0.8, 0.02, 0.9), log_ratio_penalty=1e-3)
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
def batches(draw: st.DrawFn) -> Batch:
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))

    def tensor(elements: st.SearchStrategy[float]) -> Tensor:
        values = draw(st.lists(elements, min_size=rows * width, max_size=rows * width))
        return torch.tensor(values, dtype=torch.float32).reshape(rows, width)

    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    partition = tensor(st.floats(0.0, 1.0, width=32))
    return Batch(tensor(log_probs), tensor(log_probs), tensor(log_probs), tensor(advantages), partition, mask)


@dataclass(frozen=True)
class Batch:
    log_pi: Tensor
    log_mu: Tensor
    log_old: Tensor
    advantages: Tensor
    partition: Tensor
    mask: Tensor

    def anchor(self, objective: Objective) -> Tensor:
        return self.log_old if objective.recomputed_anchor else self.log_mu


BELOW_THE_BOUND = Batch(
    log_pi=torch.tensor([[-22.0]]), log_mu=torch.tensor([[0.0]]), log_old=torch.tensor([[-8.0]]),
    advantages=torch.tensor([[1.0]]), partition=torch.tensor([[0.0]]), mask=torch.tensor([[True]]),
)  # fmt: skip
"""log r is clamped, and a recomputed pi_old is so small that what it is clamped to can be told from pi."""

OLD_BELOW_THE_BOUND = Batch(
    log_pi=torch.tensor([[-2.0]]), log_mu=torch.tensor([[0.0]]), log_old=torch.tensor([[-21.0]]),
    advantages=torch.tensor([[1.0]]), partition=torch.tensor([[0.0]]), mask=torch.tensor([[True]]),
)  # fmt: skip
"""No ratio of pi is clamped, and pi_old / mu is smaller than what a ratio is clamped to."""


@dataclass(frozen=True)
class Case:
    """A method with one of its ablations."""

    name: str
    penalty: str | None = None
    ratio_cap: float | None = None
    advantage_weighted: bool = True
    restrict_to: Literal["positive", "negative"] | None = None
    asymmetric: bool = False

    @property
    def objective(self) -> Objective:
        row = OBJECTIVES[self.name]
        return row if self.penalty is None else replace(row, geometry=PENALTIES[self.penalty])

    def region(self, delta: float, region_delta: float) -> TrustRegion:
        return TrustRegion(
            delta_low=delta,
            delta_high=1.7 * delta if self.asymmetric else delta,
            ratio_cap=self.ratio_cap,
            region_delta=region_delta,
            advantage_weighted=self.advantage_weighted,
            restrict_to=self.restrict_to,
            dual_clip=None,
        )


METHODS = [  # verl's: see integration; those after drpo_adaptive: see test_choices
    name for name in list(OBJECTIVES)[: list(OBJECTIVES).index("drpo_adaptive") + 1] if not OBJECTIVES[name].verl_loss
]
MASKS = [name for name in METHODS if OBJECTIVES[name].enforcement is HARD_MASK]
CASES = [
    *(Case(name) for name in METHODS),
    *(Case(name, asymmetric=True) for name in METHODS if OBJECTIVES[name].enforcement.needs_threshold),
    *(Case(name, ratio_cap=5.0) for name in ("surrogate", "pg_tis", "drpo_topk", "drpo", "spo", "mask_drpo", *MASKS)),
    Case("drpo_decoupled", ratio_cap=5.0),
    *(Case(name, restrict_to=sign) for name in ("mask_drpo", *MASKS) for sign in ("positive", "negative")),
    *(Case(name, penalty=penalty) for name in ("drpo", "mask_drpo") for penalty in PENALTIES),
    *(Case("drpo", penalty=penalty, advantage_weighted=False, asymmetric=True) for penalty in PENALTIES),
    *(Case("drpo", penalty=penalty, ratio_cap=5.0) for penalty in PENALTIES),
    Case("spo", advantage_weighted=False),
    Case("drpo_adaptive", penalty="chi2", asymmetric=True),
    Case("drpo_adaptive", ratio_cap=5.0),
    Case("drpo_adaptive", advantage_weighted=False),
]  # fmt: skip


def near_a_boundary(case: Case, region: TrustRegion, batch: Batch) -> bool:
    # A hard mask is a step: within fp32 rounding of its edge either side is right. And so is the clamp of log r, and
    # the sign of a move of less than fp32 can tell.
    log_pi, log_mu, anchor = batch.log_pi.double(), batch.log_mu.double(), batch.anchor(case.objective).double()
    at_edge = False
    if case.objective.enforcement is HARD_MASK or case.objective.enforcement.gated:
        reached = oracle.distance(case.name, log_pi, anchor, batch.partition.double())
        for delta in (region.delta_low, region.delta_high, region.region_delta):
            at_edge |= bool(((reached - delta).abs() < 1e-4 * max(1.0, delta)).any())
    if case.penalty == "tv":  # float64 takes such a ratio for 1, where abs(r - 1) has no derivative
        at_edge |= bool((((log_pi - log_mu).abs() < 1e-15) & (log_pi != log_mu)).any())
    for moved in (log_pi - log_mu, log_pi - anchor):
        at_edge |= bool(((moved.abs() - 20.0).abs() < 1e-4).any())
    return at_edge


def _loss_and_grad(loss: Tensor, log_pi: Tensor) -> tuple[float, Tensor]:
    (gradient,) = torch.autograd.grad(loss, log_pi)
    return loss.item(), gradient


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=20)
@given(batch=batches(), delta=deltas, region_delta=deltas, aggregation=st.sampled_from(AGGREGATIONS))
@example(batch=BELOW_THE_BOUND, delta=0.01, region_delta=0.01, aggregation="token-mean")
@example(batch=OLD_BELOW_THE_BOUND, delta=0.01, region_delta=0.01, aggregation="token-mean")
def test_gradient_is_that_of_the_objective_in_the_paper(
    case: Case, batch: Batch, delta: float, region_delta: float, aggregation: str
) -> None:
    assume(batch.mask.any())
    objective, region = case.objective, case.region(delta, region_delta)
    assume(not near_a_boundary(case, region, batch))
    exact_pi, exact_mu = batch.log_pi.double().requires_grad_(), batch.log_mu.double()
    anchor, advantage = batch.anchor(objective), batch.advantages.double()
    aggregate = partial(agg_loss, loss_mask=batch.mask, loss_agg_mode=aggregation)

    explicit = oracle.objective(
        case.name, region, exact_pi, exact_mu, advantage,
        log_anchor=anchor.double(), partition=batch.partition.double(), penalty=case.penalty,
    )  # fmt: skip
    expected, expected_gradient = _loss_and_grad(aggregate(-explicit), exact_pi)
    log_pi = batch.log_pi.clone().requires_grad_()
    ours = token_loss(
        objective, region, log_pi, batch.log_mu, batch.advantages, batch.mask,
        log_anchor=anchor if objective.recomputed_anchor else None, partition_divergence=batch.partition,
    )  # fmt: skip
    value, gradient = _loss_and_grad(aggregate(ours.loss), log_pi)

    # Relative to the terms: where r A and its regulariser cancel, near the boundary, fp32 inputs have no more digits.
    terms = _term_magnitude(
        case, region, exact_pi.detach(), exact_mu, anchor.double(), advantage, batch.partition.double()
    )
    share = torch.autograd.grad(aggregate(terms.requires_grad_()), terms)[0]
    assert bool(((gradient - expected_gradient).abs() <= 1e-5 * terms.detach() * share + 1e-12).all())
    # Beyond, the objective is constant, and its value no matter.
    if not ((torch.maximum(batch.log_pi, anchor) - torch.minimum(batch.log_mu, anchor)) > 20.0).any():
        scale = terms.detach() * share * (exact_pi.detach().abs() + 1 if case.name == "pg_tis" else 1)
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-12 + 1e-5 * scale.sum().item())


def _term_magnitude(
    case: Case,
    region: TrustRegion,
    log_pi: Tensor,
    log_mu: Tensor,
    log_anchor: Tensor,
    advantages: Tensor,
    partition: Tensor,
) -> Tensor:
    ratio = (log_pi - log_mu).clamp(-20.0, 20.0).exp()
    terms = advantages.abs() * ratio
    if case.objective.enforcement.attenuates:
        distance = case.objective.geometry.distance(TokenRatio.of(log_pi, log_anchor, partition)).abs()
        size = advantages.abs() if case.advantage_weighted else torch.ones_like(advantages)
        terms = terms + size * ratio * distance / min(region.delta_low, region.delta_high)
        if case.penalty == "kl":
            terms = terms + size * ratio / region.delta_low  # r log r - (r - 1): a difference of terms of size r
        if case.penalty == "k3":
            terms = terms + size * (1 + (log_pi - log_mu).abs()) / region.delta_low
    return terms


@given(log_pi=log_probs, log_mu=log_probs)
@example(log_pi=0.0, log_mu=0.0)
@example(log_pi=0.0, log_mu=-45.0)
@example(log_pi=-45.0, log_mu=0.0)
@settings(max_examples=100)
def test_every_objective_is_finite_everywhere(log_pi: float, log_mu: float) -> None:
    pi, mu = torch.tensor([[log_pi]], requires_grad=True), torch.tensor([[log_mu]])
    for name, objective in OBJECTIVES.items():
        for sign in (-1.0, 1.0):
            result = token_loss(
                objective, REGION, pi, mu, torch.tensor([[sign]]), torch.ones(1, 1),
                partition_divergence=torch.full((1, 1), 0.3), partition_derivative=torch.full((1, 1), 0.1),
            )  # fmt: skip
            (gradient,) = torch.autograd.grad(result.loss.sum(), pi)
            metrics = result.accumulators.to_host().metrics()
            assert result.loss.isfinite().all() and gradient.isfinite().all(), name
            assert all(torch.tensor(list(metrics.values())).isfinite()), metrics


@given(log_pi=log_probs, log_mu=log_probs)
@settings(max_examples=100)
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
        result = token_loss(
            OBJECTIVES[name], REGION, log_pi, log_mu, advantages, mask,
            partition_divergence=torch.full_like(log_mu, 0.12), partition_derivative=advantages,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(result.loss.sum(), log_pi)
        return result.loss, gradient, dict(result.accumulators.to_host().metrics())

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = run()
    assert torch.equal(plain[0], under_autocast[0]) and torch.equal(plain[1], under_autocast[1])
    assert plain[2] == under_autocast[2]

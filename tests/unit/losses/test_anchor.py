"""Every method with its distance measured from pi_old, against the same method around pi_old in float64."""

from __future__ import annotations

from dataclasses import replace

import oracle
import pytest
import torch
from torch import Tensor

from drpo_verl.losses import OBJECTIVES, PENALTIES, Objective, TrustRegion, token_loss

ROWS = {
    name: row
    for name, row in list(OBJECTIVES.items())[: list(OBJECTIVES).index("drpo_adaptive") + 1]  # the rest: test_choices
    if row.enforcement.needs_threshold and not (row.verl_loss or row.needs_top_k or row.recomputed_anchor)
}
"""The methods for which another anchor means something."""

CASES = [
    *((name, TrustRegion(0.1, 0.1, region_delta=0.05), None) for name in ROWS),
    *((name, TrustRegion(0.1, 0.2, region_delta=0.05, ratio_cap=2.0), None) for name in ROWS),
    *(("drpo", TrustRegion(0.1, 0.1, advantage_weighted=False), penalty) for penalty in PENALTIES),
    *(("mask_drpo", TrustRegion(0.1, 0.1, region_delta=0.05), penalty) for penalty in PENALTIES),
]


def _tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(8, 40, generator=generator)

    log_old = -4 * torch.rand(8, 40, generator=generator) - 0.05
    log_pi, log_mu = ((log_old + noise(0.4)).clamp(max=-1e-3) for _ in range(2))
    return log_pi, log_mu, log_old, noise(1.0)


def _ours(
    row: Objective, region: TrustRegion, penalty: str | None, log_pi: Tensor, log_mu: Tensor, log_old: Tensor,
    advantages: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    row = row if penalty is None else replace(row, geometry=PENALTIES[penalty])
    policy = log_pi.clone().requires_grad_()
    loss = token_loss(
        row, region, policy, log_mu, advantages, torch.ones_like(log_mu), log_anchor=log_old
    ).loss  # fmt: skip
    return loss.detach(), torch.autograd.grad(loss.sum(), policy)[0]


@pytest.mark.parametrize(("name", "region", "penalty"), CASES, ids=str)
def test_the_distance_is_that_from_pi_old_and_the_ratio_that_to_mu(
    name: str, region: TrustRegion, penalty: str | None
) -> None:
    log_pi, log_mu, log_old, advantages = _tokens()
    loss, gradient = _ours(ROWS[name], region, penalty, log_pi, log_mu, log_old, advantages)

    # The expectation over mu of pi_old / mu times an objective is that of the objective over pi_old.
    exact_pi, exact_old, exact_mu = log_pi.double().requires_grad_(), log_old.double(), log_mu.double()
    around_pi_old = oracle.objective(
        name, replace(region, ratio_cap=None), exact_pi, exact_old, advantages.double(), log_anchor=exact_old,
        partition=torch.zeros_like(exact_old), penalty=penalty,
    )  # fmt: skip
    expected = -(exact_old - exact_mu).exp() * around_pi_old
    (expected_gradient,) = torch.autograd.grad(expected.sum(), exact_pi)
    if region.ratio_cap is not None:
        expected_gradient *= (region.ratio_cap / (exact_pi - exact_mu).exp()).clamp(max=1.0)
        expected = expected_gradient  # a truncated ratio is a coefficient, and the value of the loss is its gradient
    torch.testing.assert_close(gradient.double(), expected_gradient.detach(), rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-4, atol=2e-5)

    around_mu = _ours(ROWS[name], region, penalty, log_pi, log_mu, log_mu, advantages)[1]
    assert not torch.allclose(gradient, around_mu, rtol=1e-2), "the two anchors are the same: the case tests nothing"


@pytest.mark.parametrize("name", ROWS)
def test_before_the_first_update_no_method_sees_the_mismatch_of_the_engines(name: str) -> None:
    log_pi, log_mu, _, advantages = _tokens()
    region = TrustRegion(0.01, 0.01, region_delta=0.01)
    loss, gradient = _ours(ROWS[name], region, None, log_pi, log_mu, log_pi, advantages)
    plain = -advantages * (log_pi - log_mu).exp()
    torch.testing.assert_close(gradient, plain, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-7)

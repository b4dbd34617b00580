"""Weights that others have computed: five tokens under the methods of both papers, to six digits.

Computed in float64 from the papers' formulas; those of DPPO agree with verl 0.9.1's own functions.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from drpo_verl.losses import OBJECTIVES, PENALTIES, Objective, TrustRegion, token_loss

MU = [0.50, 0.50, 0.01, 0.90, 0.30]
PI = [0.75, 0.28, 0.05, 0.60, 0.02]
ADVANTAGES = [1.0, -1.0, 1.0, 0.5, -2.0]


def _weights(objective: Objective, region: TrustRegion) -> list[float]:
    """w of each token: the gradient per unit of -A r."""
    mu, advantages = torch.tensor([MU]), torch.tensor([ADVANTAGES])
    log_pi = torch.tensor([PI]).log().requires_grad_()
    loss = token_loss(objective, region, log_pi, mu.log(), advantages, torch.ones(1, 5)).loss
    (gradient,) = torch.autograd.grad(loss.sum(), log_pi)
    ratio = torch.tensor([PI]) / mu
    return (gradient / (-advantages * ratio)).squeeze(0).tolist()


@pytest.mark.parametrize(
    ("method", "region", "expected"),
    [
        ("dppo_binary_tv", TrustRegion(0.15, 0.15), [0, 0, 1, 1, 0]),
        ("dppo_binary_kl", TrustRegion(0.05, 0.05), [0, 0, 1, 1, 0]),
        ("spo", TrustRegion(12.5, 12.5), [0.960000, 0.964800, 0.680000, 1.026667, 0.925333]),
        ("drpo", TrustRegion(12.5, 12.5), [0.980000, 0.982400, 0.996800, 1.024000, 0.977600]),
        ("drpo", TrustRegion(0.2, 0.2), [-0.250000, -0.100000, 0.800000, 2.500000, -0.400000]),
        ("mask_drpo", TrustRegion(0.2, 0.2, region_delta=0.15), [-0.250000, -0.100000, 1, 1, -0.400000]),
    ],
)
def test_the_weights_of_the_methods_in_both_papers(method: str, region: TrustRegion, expected: list[float]) -> None:
    assert _weights(OBJECTIVES[method], region) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        ("l2", [0.875000, 0.890000, 0.980000, 1.150000, 0.860000]),
        ("chi2", [0.750000, 0.780000, -1.000000, 1.166667, 0.533333]),
        ("kl", [0.797267, 0.710091, 0.195281, 1.202733, -0.354025]),
        ("tv", [0.75, 0.75, 0.75, 1.25, 0.75]),
        ("k3", [0.833333, 0.607143, 0.600000, 1.250000, -6.000000]),
    ],
)
def test_the_weights_of_the_ablated_penalties(penalty: str, expected: list[float]) -> None:
    row = replace(OBJECTIVES["drpo"], geometry=PENALTIES[penalty])
    assert _weights(row, TrustRegion(2.0, 2.0)) == pytest.approx(expected, abs=3e-6)

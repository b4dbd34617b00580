"""What drpo_topk regularises: expectation and second moment of its sampled gradient, over a whole vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drpo_verl.losses import OBJECTIVES, TrustRegion, token_loss

DELTA = 0.5
REGION = TrustRegion(DELTA, DELTA)


def _gradients(name: str, log_mu: Tensor, logits: Tensor, size: float) -> list[Tensor]:
    """The gradient of the regulariser by the logits, for each token that could have been sampled."""
    found = []
    for token in range(len(log_mu)):
        log_pi = logits.log_softmax(-1)
        divergence = 0.5 * (log_pi.exp() - log_mu.exp()).abs().sum()
        one = torch.ones(1, 1)
        gradients = []
        for row in (OBJECTIVES[name], OBJECTIVES["surrogate"]):
            loss = token_loss(
                row, REGION, log_pi[token].view(1, 1), log_mu[token].view(1, 1), size * one, one,
                partition_divergence=divergence.detach().view(1, 1),
            ).loss  # fmt: skip
            gradients.append(torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0])
        found.append(gradients[0] - gradients[1])  # the surrogate has the rest
    return found


def _policies(seed: int, vocabulary: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_mu = torch.randn(vocabulary, generator=generator).log_softmax(-1)
    return log_mu, (log_mu + 0.5 * torch.randn(vocabulary, generator=generator)).requires_grad_()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1.0, 2.5])
def test_in_expectation_it_is_the_gradient_of_the_squared_total_variation(seed: int, size: float) -> None:
    log_mu, logits = _policies(seed)
    mu = log_mu.exp()
    expected = sum(share * each for share, each in zip(mu, _gradients("drpo_topk", log_mu, logits, size), strict=True))
    total_variation = 0.5 * (logits.log_softmax(-1).exp() - mu).abs().sum()
    (gradient,) = torch.autograd.grad(size * total_variation**2 / DELTA, logits)
    torch.testing.assert_close(expected, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_its_second_moment_is_never_below_that_of_drpo(seed: int) -> None:
    log_mu, logits = _policies(seed)
    moments = {
        name: sum(
            share * each.square().sum()
            for share, each in zip(log_mu.exp(), _gradients(name, log_mu, logits, 1.0), strict=True)
        )
        for name in ("drpo", "drpo_topk")
    }
    assert moments["drpo_topk"] >= moments["drpo"]


def test_where_n_tokens_have_moved_alike_it_is_n_squared_over_four_times_as_large() -> None:
    vocabulary, moved = 8, 0.02
    mu = torch.full((vocabulary,), 1 / vocabulary)
    pi = mu + moved * torch.tensor([1.0, -1.0]).repeat(vocabulary // 2)
    logits = pi.log().requires_grad_()
    moments = [
        sum(each.square().sum() for each in _gradients(name, mu.log(), logits, 1.0)) for name in ("drpo_topk", "drpo")
    ]
    assert (moments[0] / moments[1]).item() == pytest.approx(vocabulary**2 / 4, rel=1e-3)

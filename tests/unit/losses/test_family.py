"""Weights that others have computed for the newer methods, to six digits: each method at its public defaults.

In float64, from the papers and the source code named in docs/methods.md. CPPO's, prime-rl's and AReaL's formulas were
read there; those of Predictive Divergence Masks are second-hand, quoted by others and derived anew, and agree with a
finite difference of the divergence.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from drpo_verl.losses import OBJECTIVES, PrefixBudget, SequenceMask, TrustRegion, token_loss
from drpo_verl.losses.partition import kullback_leibler, kullback_leibler_derivative
from drpo_verl.losses.scope import quantile

MU = [0.50, 0.50, 0.01, 0.90, 0.30]
PI = [0.75, 0.28, 0.05, 0.60, 0.02]
ADVANTAGES = [1.0, -1.0, 1.0, 0.5, -2.0]


def _gradient(name: str, region: TrustRegion, mu: Tensor, pi: Tensor, advantages: Tensor, **more: Tensor) -> Tensor:
    """The derivative of the loss by log pi, ``[B, T]``."""
    log_pi = pi.log().requires_grad_()
    mask = more.pop("mask", torch.ones_like(mu))
    loss = token_loss(OBJECTIVES[name], region, log_pi, mu.log(), advantages, mask, **more).loss
    return torch.autograd.grad(loss.sum(), log_pi)[0]


def _weights(name: str, region: TrustRegion, mu: Tensor, pi: Tensor, advantages: Tensor, **more: Tensor) -> list[float]:
    gradient = _gradient(name, region, mu, pi, advantages, **more)
    return (gradient / (-advantages * pi / mu)).squeeze(0).tolist()


PRIME_RL = {
    "prime_rl": (
        0.2,
        [0.00016440, 0.00033619, -4.99740971, -0.33316893, 0.00733354],
        [0.00081093, -0.00115964, -4.99678112, -0.33414426, -0.00541610],
    ),
    "ipo": (
        0.1,
        [0.00016440, 0.00033619, -4.99740971, 0.00016440, 0.00733354],
        [0.00081093, -0.00115964, -4.99678112, -0.00081093, -0.00541610],
    ),
}


@pytest.mark.parametrize("name", list(PRIME_RL))
def test_prime_rl(name: str) -> None:
    delta, losses, gradients = PRIME_RL[name]
    region = TrustRegion(delta, delta, log_ratio_penalty=1e-3)
    log_pi = torch.tensor([PI]).log().requires_grad_()
    mu, advantages = torch.tensor([MU]), torch.tensor([ADVANTAGES])
    loss = token_loss(OBJECTIVES[name], region, log_pi, mu.log(), advantages, torch.ones(1, 5)).loss
    assert loss.squeeze(0).tolist() == pytest.approx(losses, abs=2e-6)
    assert torch.autograd.grad(loss.sum(), log_pi)[0].squeeze(0).tolist() == pytest.approx(gradients, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "region", "kept"),
    [
        ("icepop", TrustRegion(0.5, 4.0), [1, 1, 0, 0, 0, 1, 0]),
        ("kpop", TrustRegion(2.0, 2.0), [1, 1, 1, 0, 0, 1, 1]),
        ("kpop", TrustRegion(0.1, 0.1), [0, 1, 0, 0, 0, 1, 1]),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_areal(name: str, region: TrustRegion, kept: list[int], sign: float) -> None:
    mu = torch.tensor([[0.50, 0.01, 0.30, 0.99, 0.02, 0.01, 0.01]])
    pi = torch.tensor([[0.75, 0.05, 0.02, 0.05, 0.97, 0.0499, 0.0501]])
    weights = _weights(name, region, mu, pi, sign * torch.ones_like(mu))
    # r = 5 is the bound itself, which belongs to the region: in fp32 on either side.
    assert [w for i, w in enumerate(weights) if i != 1] == pytest.approx(kept[:1] + kept[2:], abs=1e-6)


SEQUENCES = [
    ([0.50, 0.40, 0.80], [0.55, 0.38, 0.82], 1.0),
    ([0.50, 0.20, 0.70], [0.90, 0.05, 0.72], -1.0),
    ([0.01, 0.90], [0.05, 0.88], 1.0),
    ([0.60] * 4, [0.59] * 4, -0.5),
    ([0.30, 0.50], [0.00001, 0.50], 1.0),
]


def _padded() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The five responses as rows: mu, pi, A and the mask."""
    width = max(len(mu) for mu, _, _ in SEQUENCES)
    rows = [torch.tensor([each[i] + [1.0] * (width - len(each[i])) for each in SEQUENCES]) for i in (0, 1)]  # type: ignore[operator]
    advantages = torch.tensor([[advantage] * width for _, _, advantage in SEQUENCES])
    lengths = torch.tensor([[len(mu)] for mu, _, _ in SEQUENCES])
    return rows[0], rows[1], advantages, torch.arange(width) < lengths


@pytest.mark.parametrize(
    ("name", "delta", "kept"), [("trm_max", 0.1, [1, 0, 1, 1, 0]), ("trm_avg", 0.002, [0, 0, 0, 1, 0])]
)
def test_trm_drops_whole_responses(name: str, delta: float, kept: list[int]) -> None:
    mu, pi, advantages, mask = _padded()
    gradient = _gradient(name, TrustRegion(delta, delta), mu, pi, advantages, mask=mask)
    expected = torch.where(mask, -advantages * pi / mu, 0.0) * torch.tensor(kept)[:, None]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("sequence_mask", "kept"),
    [
        (SequenceMask("geometric", 0.99, 1.01), [0, 0, 0, 0, 0]),
        (SequenceMask("product", 0.5, 2.0), [1, 0, 0, 1, 0]),
        (SequenceMask("geometric", 1.02, 1.03), [1, 0, 0, 0, 0]),
        (SequenceMask("geometric", 0.77, 0.99), [0, 1, 0, 1, 0]),
        (SequenceMask("product", upper=5.0), [1, 1, 1, 1, 1]),
        (SequenceMask("product", upper=4.8), [1, 1, 0, 1, 1]),
        (SequenceMask("mean_k3", upper=0.01), [1, 0, 0, 1, 0]),
        (SequenceMask("mean_k3", upper=0.00014), [0, 0, 0, 0, 0]),
        (SequenceMask("mean_k3", upper=0.00015), [0, 0, 0, 1, 0]),
        (SequenceMask("max_kl", upper=0.1), [1, 0, 1, 1, 0]),
        (SequenceMask("mean_kl", upper=0.002), [0, 0, 0, 1, 0]),
        (SequenceMask(veto=1e-4), [1, 1, 1, 1, 0]),
        (SequenceMask("product", upper=0.5, veto=1e-4), [0, 1, 0, 0, 0]),
    ],
)
def test_sequence_masks_leave_out_responses_and_keep_the_denominator(
    sequence_mask: SequenceMask, kept: list[int]
) -> None:
    mu, pi, advantages, mask = _padded()
    log_pi = pi.log().requires_grad_()
    result = token_loss(
        OBJECTIVES["drpo"], TrustRegion(0.5, 0.5), log_pi, mu.log(), advantages, mask, sequence_mask=sequence_mask
    )
    without = token_loss(OBJECTIVES["drpo"], TrustRegion(0.5, 0.5), log_pi, mu.log(), advantages, mask)
    torch.testing.assert_close(result.loss, without.loss * torch.tensor(kept)[:, None])
    gradients = [torch.autograd.grad(each.loss.sum(), log_pi)[0] for each in (result, without)]
    torch.testing.assert_close(gradients[0], gradients[1] * torch.tensor(kept)[:, None])
    metrics = result.accumulators.to_host().metrics()
    lengths = mask.sum(-1)
    assert result.accumulators.to_host().tokens == lengths.sum()
    dropped = (lengths * (1 - torch.tensor(kept))).sum() / lengths.sum()
    assert metrics["trust_region/sequence_masked_frac"] == pytest.approx(dropped.item())
    assert (metrics["trust_region/weight_min"] == 0) == (min(kept) == 0)


CPPO = [
    # D, s, delta_b, M, the soft gate
    ([0.01, 0.02, 0.01, 0, 0.02], "+++++", 0.02, [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    ([0.14, 0.05, 0.05, 0.05, 0.05], "+++++", 0.02, [1, 0, 0, 0, 0], [1, 0.906667, 0.812903, 0.752727, 0.711111]),
    ([0.30, 0.10, 0.02, 0.02, 0.02], "--+++", 0.02, [1, 1, 0, 0, 0], [1, 1, 0.457627, 0.481395, 0.502242]),
    ([0.16, 0, 0, 0, 0.18], "+++++", 0.5, [0, 1, 1, 1, 1], [0.9375, 1, 1, 1, 1]),
    ([0.20, 0.02, 0.02, 0.20, 0.01], "+++++", 0.05, [0, 0, 1, 0, 0], [0.75, 0.913242, 1, 0.718673, 0.807229]),
    ([0.14, 0.05, 0.05, 0.05, 0.05], "++-++", 0.02, [1, 0, 1, 0, 0], [1, 0.906667, 1, 0.752727, 0.711111]),
]  # fmt: skip


def _response(distances: Sequence[float], senses: str) -> tuple[Tensor, Tensor, Tensor]:
    """mu, pi and A of a response whose tokens all rise by D, and diverge or converge."""
    pi = torch.tensor([[0.5 + distance for distance in distances]], dtype=torch.float64)
    advantages = torch.tensor([[1.0 if sense == "+" else -1.0 for sense in senses]])
    return torch.full_like(pi, 0.5), pi, advantages


@pytest.mark.parametrize(("distances", "senses", "delta_b", "mask", "soft"), CPPO)
def test_cppo(distances: list[float], senses: str, delta_b: float, mask: list[float], soft: list[float]) -> None:
    region = TrustRegion(0.15, 0.15, prefix_budget=PrefixBudget(0.8, delta_b))
    response = _response(distances, senses)
    assert _weights("cppo", region, *response) == pytest.approx(mask, abs=1e-6)
    assert _weights("cppo_soft", region, *response) == pytest.approx(soft, abs=1e-5)


def test_drpo_with_a_prefix_budget_lets_the_tokens_own_distance_alone_amplify() -> None:
    region = TrustRegion(0.15, 0.15, prefix_budget=PrefixBudget(0.8, 0.02))
    weights = _weights("drpo_prefix", region, *_response([0.14, 0.05, 0.05, 0.05, 0.05], "++-++"))
    # Of the third, 1 + Z / delta = 1 + 0.045 / 0.15, where the whole budget would make 2.230159.
    assert weights == pytest.approx([0.066667, -0.102941, 1.3, -0.328502, -0.406250], abs=1e-5)


def test_dppo_is_cppo_with_equal_weights_and_a_large_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    mu, pi = (torch.rand(4, 50, generator=generator) * 0.9 + 0.05 for _ in range(2))
    advantages = torch.randn(4, 50, generator=generator)
    dppo = _gradient("dppo_binary_tv", TrustRegion(0.15, 0.15), mu, pi, advantages)
    cppo = _gradient("cppo", TrustRegion(0.15, 0.15, prefix_budget=PrefixBudget(1.0, 1.0)), mu, pi, advantages)
    assert torch.equal(dppo, cppo)


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ([0.0] * 9 + [0.01], 0.02),
        ([i / 100 for i in range(10)], 0.04),
        ([0.05, 0.01], 0.04),
        ([0, 0.005, 0.01, 0.02, 0.025, 0.03, 0.02, 0.025, 0.03, 0.03], 0.03),
        ([0.2], 0.04),
    ],
)
def test_the_budget_is_the_quantile_of_a_responses_own_tokens(distances: list[float], expected: float) -> None:
    for padding in (0, 7):
        row = torch.tensor([distances + [0.9] * padding, [0.0] * (len(distances) + padding)])
        is_token = (torch.arange(row.shape[1]) < len(distances)).float().expand(2, -1)
        found = quantile(row, is_token, 0.9)
        assert found[0].clamp(0.02, 0.04).item() == pytest.approx(expected, rel=1e-5) and found[1] == 0


def test_position_weights_are_of_the_responses_own_length() -> None:
    # With the padded length in its place, as in verl's pull request 6731, the third would be masked.
    mu, pi, advantages = _response([0.01, 0.01, 0.17] + [0.0] * 50, "+++" + "+" * 50)
    region = TrustRegion(0.15, 0.15, prefix_budget=PrefixBudget(0.8, 0.2))
    mask = (torch.arange(53) < 3).float()[None]
    gradient = _gradient("cppo", region, mu, pi, advantages, mask=mask)
    assert gradient[0, :3].tolist() == pytest.approx((-pi / mu)[0, :3].tolist())
    tool = torch.ones(1, 53)  # and all 53 are response tokens: the third is at the beginning
    assert _gradient("cppo", region, mu, pi, advantages, mask=tool)[0, 2] == 0


PREDICTED = [
    # which pair, k, A, listed, D, derivative (aggregated, uniform), kept by ratio, kept by prediction
    (1, 0, 1.0, [0, 1], 0.227377, 0.130000, 0.115000, 0, 0),
    (1, 5, 1.0, [5, 0, 1], 0.237114, -0.160400, -0.173600, 0, 1),
    (1, 1, -1.0, [1, 0], 0.227377, -0.370000, -0.385000, 0, 0),
    (2, 4, -1.0, [4, 0, 1], 0.372509, -0.154000, -0.165000, 1, 0),
    (2, 4, 1.0, [4, 0, 1], 0.372509, -0.154000, -0.165000, 0, 1),
]  # fmt: skip
PAIRS = {
    1: ([0.40, 0.30, 0.15, 0.10, 0.04, 0.01], [0.70, 0.10, 0.10, 0.05, 0.03, 0.02]),
    2: ([0.50, 0.20, 0.15, 0.10, 0.04, 0.01], [0.20, 0.60, 0.08, 0.06, 0.05, 0.01]),
}


@pytest.mark.parametrize(
    ("pair", "token", "advantage", "listed", "divergence", "aggregated", "uniform", "by_ratio", "predicted"), PREDICTED
)
def test_predictive_divergence_masks(  # second-hand: see above
    pair: int, token: int, advantage: float, listed: list[int], divergence: float,
    aggregated: float, uniform: float, by_ratio: int, predicted: int,
) -> None:  # fmt: skip
    mu, pi = (torch.tensor(each) for each in PAIRS[pair])
    partition = mu[listed].log()[None], pi[listed].log()[None], torch.ones(1, len(listed)), None
    found = kullback_leibler(*partition)
    assert found.item() == pytest.approx(divergence, abs=2e-6)
    derivatives = {
        tail: kullback_leibler_derivative(*partition, vocabulary=6, tail=tail) for tail in ("aggregated", "uniform")
    }
    assert derivatives["aggregated"].item() == pytest.approx(aggregated, abs=2e-6)
    assert derivatives["uniform"].item() == pytest.approx(uniform, abs=2e-6)
    for name, kept in (("dppo_topk_kl", by_ratio), ("pdm", predicted)):
        weights = _weights(
            name, TrustRegion(0.05, 0.05), mu[token].view(1, 1), pi[token].view(1, 1), torch.tensor([[advantage]]),
            partition_divergence=found[None], partition_derivative=derivatives["aggregated"][None],
        )  # fmt: skip
        assert weights == pytest.approx([kept], abs=1e-6)


def test_the_derivative_is_that_of_the_divergence_along_the_update() -> None:
    mu = torch.tensor(PAIRS[1][0], dtype=torch.float64)
    logits = torch.tensor(PAIRS[1][1], dtype=torch.float64).log()
    for k in range(6):
        step = 1e-6 * (torch.nn.functional.one_hot(torch.tensor(k), 6) - logits.exp())
        ends = [(logits + sign * step).log_softmax(-1) for sign in (1, -1)]
        up, down = ((mu * (mu.log() - end)).sum().item() for end in ends)
        order = [k, *(i for i in range(6) if i != k)]
        everything = mu[order].log(), logits[order], torch.ones(6, dtype=torch.float64), None
        found = kullback_leibler_derivative(*everything, vocabulary=6, tail="aggregated").item()
        assert found == pytest.approx((up - down) / 2e-6, abs=1e-6)


@pytest.mark.parametrize(("mu", "pi", "expected"), [(0.5, 0.75, 0.125), (0.01, 0.05, 0.076), (0.9, 0.6, -0.24)])
def test_over_two_tokens_the_predicted_direction_is_that_of_the_ratio(mu: float, pi: float, expected: float) -> None:
    binary = torch.tensor([mu]).log(), torch.tensor([pi]).log(), torch.ones(1), None
    assert kullback_leibler_derivative(*binary, vocabulary=9, tail="aggregated").item() == pytest.approx(
        expected, abs=2e-6
    )

"""Every row and every allowed combination of choices against plain Python in float64; the others are refused."""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import replace
from typing import Any

import family
import pytest
import torch
from torch import Tensor

from drpo_verl.losses import OBJECTIVES, Objective, PrefixBudget, SequenceMask, TrustRegion, table, token_loss
from drpo_verl.losses.direction import BY_RATIO, NONE, PREDICTIVE, Direction
from drpo_verl.losses.enforcement import HARD_MASK, QUADRATIC, SOFT_MASK
from drpo_verl.losses.geometry import BINARY_KL, PROBABILITY, RATIO, SYMMETRISED_BINARY_KL, TOP_K_KL, TOP_K_TV
from drpo_verl.losses.scope import PREFIX, SEQUENCE_MAX, SEQUENCE_MEAN, quantile

CHOICES = {
    "geometry": {
        "probability": PROBABILITY, "ratio": RATIO, "binary_kl": BINARY_KL, "symmetrised_kl": SYMMETRISED_BINARY_KL,
        "top_k_tv": TOP_K_TV, "top_k_kl": TOP_K_KL,
    },
    "direction": {"by_ratio": BY_RATIO, "none": NONE, "predictive": PREDICTIVE},
    "enforcement": {"mask": HARD_MASK, "soft": SOFT_MASK, "quadratic": QUADRATIC},
    "scope": {"token": None, "prefix": PREFIX, "sequence_max": SEQUENCE_MAX, "sequence_mean": SEQUENCE_MEAN},
}  # fmt: skip
COMBINATIONS: dict[str, Objective] = {
    "-".join(names): Objective(geometry, enforcement, "a test", direction=direction, scope=scope)
    for names, (geometry, direction, enforcement, scope) in zip(
        itertools.product(*CHOICES.values()),
        itertools.product(*(each.values() for each in CHOICES.values())),
        strict=True,
    )
}
SUPPORTED = (HARD_MASK, SOFT_MASK, QUADRATIC)
ROWS = {
    name: row
    for name, row in OBJECTIVES.items()
    if row.enforcement in SUPPORTED and row.verl_loss is None and not row.recomputed_anchor
}
REGION = TrustRegion(0.05, 0.05, prefix_budget=PrefixBudget(0.8, 0.02, 0.9))


def _responses(seed: int, lengths: tuple[int, ...] = (1, 2, 9, 30)) -> list[list[family.Token]]:
    draw = random.Random(seed)
    responses = []
    for length in lengths:
        response = []
        for _ in range(length):
            mu = draw.choice([draw.uniform(0.001, 0.999), draw.uniform(0.001, 0.02), draw.uniform(0.98, 0.999)])
            pi = min(max(mu + draw.gauss(0, 0.08) * draw.choice([0.01, 1.0]), 1e-4), 0.9999)
            token = family.Token(mu, pi, draw.choice([-2.0, -0.5, 0.5, 1.0]), draw.expovariate(15), draw.gauss(0, 1))
            response.append(token)
        responses.append(response)
    return responses


def _padded(responses: list[list[family.Token]], gaps: bool = False) -> dict[str, Tensor]:
    """As tensors; with gaps, a position in three is a tool's."""
    width = max(map(len, responses)) * (2 if gaps else 1)
    names = ("mu", "pi", "advantage", "partition", "derivative")
    batch = {name: torch.full((len(responses), width), 0.7, dtype=torch.float64) for name in names}
    batch["mask"] = torch.zeros(len(responses), width, dtype=torch.bool)
    for row, response in enumerate(responses):
        for t, token in enumerate(response):
            place = t + t // 2 if gaps else t
            batch["mask"][row, place] = True
            for name in names:
                batch[name][row, place] = getattr(token, name)
    return batch


def _gradient(row: Objective, region: TrustRegion, batch: dict[str, Tensor], **more: Any) -> Tensor:
    log_pi = batch["pi"].log().float().requires_grad_()
    result = token_loss(
        row, region, log_pi, batch["mu"].log().float(), batch["advantage"].float(), batch["mask"],
        partition_divergence=batch["partition"].float(), partition_derivative=batch["derivative"].float(), **more,
    )  # fmt: skip
    return torch.autograd.grad(result.loss.sum(), log_pi)[0]


def _expected(row: Objective, region: TrustRegion, responses: list[list[family.Token]]) -> list[float]:
    return [
        -token.advantage * token.pi / token.mu * weight
        for response in responses
        for token, weight in zip(response, family.weights(row, region, response), strict=True)
    ]


def _check(row: Objective, region: TrustRegion, seed: int, gaps: bool = False) -> None:
    responses = _responses(seed)
    batch = _padded(responses, gaps)
    gradient = _gradient(row, region, batch)
    assert (gradient[~batch["mask"]] == 0).all()
    expected = torch.tensor(_expected(row, region, responses))
    # A step of the weight, where fp32 and float64 may be on different sides, is not among these tokens.
    torch.testing.assert_close(gradient[batch["mask"]], expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, row in COMBINATIONS.items() if family.allowed(row)])
def test_a_combination_does_what_its_choices_say(name: str) -> None:
    for seed in range(3):
        _check(COMBINATIONS[name], REGION, seed, gaps=seed == 2)


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_does_what_its_choices_say(name: str) -> None:
    if OBJECTIVES[name].enforcement.gated:
        pytest.skip("Mask-DRPO's is in test_gradients")
    for seed in range(3, 6):
        _check(ROWS[name], REGION, seed, gaps=seed == 5)


@pytest.mark.parametrize("name", list(ROWS)[list(ROWS).index("drpo_adaptive") + 1 :])
def test_metrics_are_what_their_names_say(name: str) -> None:
    row, responses, region = OBJECTIVES[name], _responses(8), replace(REGION, delta_low=0.01, delta_high=0.01)
    batch = _padded(responses, gaps=True)
    metrics = token_loss(
        row, region, *(batch[each].log().float() for each in ("pi", "mu")), batch["advantage"].float(), batch["mask"],
        partition_divergence=batch["partition"].float(), partition_derivative=batch["derivative"].float(),
    ).accumulators.to_host().metrics()  # fmt: skip
    tokens = [token for response in responses for token in response]
    weights = [weight for response in responses for weight in family.weights(row, region, response)]
    senses = [family.sense(row, token) for token in tokens]
    outside = [weight <= 1e-9 or (row.enforcement is SOFT_MASK and weight < 1) for weight in weights]
    expected = {
        "trust_region/weight_mean": statistics.fmean(weights),
        "trust_region/weight_min": min(weights),
        "trust_region/diverging_frac": statistics.fmean(s > 0 for s in senses),
        "trust_region/outside_frac": statistics.fmean(outside),
        "trust_region/corrective_frac": statistics.fmean(weight < 0 for weight in weights),
    }
    for sign in (1, -1):
        of_sign = [out and token.advantage * sign > 0 for out, token in zip(outside, tokens, strict=True)]
        suffix = "positive" if sign > 0 else "negative"
        expected[f"trust_region/outside_frac_{suffix}_advantage"] = statistics.fmean(of_sign)
    assert any(outside)
    assert {each: metrics[each] for each in expected} == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.needs_top_k])
def test_a_row_measures_from_a_recomputed_policy(name: str) -> None:
    if OBJECTIVES[name].enforcement.gated:
        pytest.skip("Mask-DRPO's is in test_anchor")
    anchored = _responses(9)  # whose mu is pi_old here
    batch = _padded(anchored)
    log_anchor, ratio = batch["mu"].log().float(), 1.7
    batch["mu"] = batch["mu"] / ratio
    expected = [ratio * each for each in _expected(ROWS[name], REGION, anchored)]
    gradient = _gradient(ROWS[name], REGION, batch, log_anchor=log_anchor)[batch["mask"]]
    torch.testing.assert_close(gradient, torch.tensor(expected), rtol=2e-4, atol=2e-5)


def test_asymmetric_bounds_without_a_direction() -> None:
    _check(OBJECTIVES["icepop"], TrustRegion(0.5, 4.0), 0)
    _check(OBJECTIVES["ipo"], TrustRegion(0.02, 0.1), 1)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.scope is not None])
def test_a_response_has_the_same_weights_whatever_it_is_batched_with(name: str) -> None:
    responses = _responses(7, (40, 3, 25, 60, 11))
    whole = _padded(responses)
    together = _gradient(ROWS[name], REGION, whole, sequence_mask=SequenceMask("geometric", 0.9, 1.1))
    for row, response in enumerate(responses):
        alone = _gradient(ROWS[name], REGION, _padded([response]), sequence_mask=SequenceMask("geometric", 0.9, 1.1))
        torch.testing.assert_close(alone[0], together[row, : len(response)], rtol=1e-6, atol=1e-9)


def test_sums_over_a_long_prefix_keep_their_digits() -> None:
    length = 8192
    mu = torch.full((1, length), 0.5, dtype=torch.float64)
    batch = {
        "mu": mu,
        "pi": mu + 1e-3,
        "advantage": torch.ones(1, length),
        "mask": torch.ones(1, length, dtype=torch.bool),
    }
    batch |= {"partition": mu, "derivative": mu}
    region = TrustRegion(0.15, 0.15, prefix_budget=PrefixBudget(0.8, 1e-3))
    row = OBJECTIVES["drpo_prefix"]
    tokens = [family.Token(0.5, 0.501, 1.0)] * length
    expected = torch.tensor([x for _, _, x in family.budgets(region, [family.distance(row, each) for each in tokens])])
    weights = _gradient(row, region, batch)[0] / (-batch["pi"] / mu)[0]
    assert (weights - (1 - expected)).abs().max() < 2e-5


REFUSED = {
    "probability-none-quadratic-token": "without a direction turns tokens around",
    "top_k_kl-none-quadratic-prefix": "without a direction turns tokens around",
    "probability-predictive-mask-token": "the derivative of the Top-K KL",
    "top_k_tv-predictive-mask-prefix": "the derivative of the Top-K KL",
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_combination_without_a_meaning_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        table.register_objective("mine", COMBINATIONS[name])
    assert "mine" not in OBJECTIVES


def test_how_many_combinations_there_are() -> None:
    # 6 geometries x (by ratio: 3 enforcements; none: 2) x 4 scopes, and predictive for one geometry.
    assert sum(map(family.allowed, COMBINATIONS.values())) == 6 * 5 * 4 + 3 * 4


def test_other_contradictions() -> None:
    def reasons(row: Objective) -> list[str]:
        return list(table.contradictions(row))

    from drpo_verl.losses.enforcement import DETACHED, GATED_QUADRATIC

    assert "nothing for a direction" in reasons(Objective(PROBABILITY, DETACHED, "", direction=NONE))[0]
    assert "nothing for a direction" in reasons(Objective(PROBABILITY, DETACHED, "", scope=PREFIX))[0]
    gated = Objective(PROBABILITY, GATED_QUADRATIC, "", mask_geometry=PROBABILITY, scope=PREFIX)
    assert "own distance" in reasons(gated)[0]
    assert "own distance" in reasons(Objective(PROBABILITY, QUADRATIC, "", adaptive=True, scope=PREFIX))[0]
    clipped = Objective(RATIO, HARD_MASK, "", verl_loss="vanilla", direction=NONE)
    assert "verl's loss" in reasons(clipped)[0]
    assert isinstance(BY_RATIO, Direction) and not any(reasons(row) for row in OBJECTIVES.values())


def test_a_predictive_direction_needs_its_derivative() -> None:
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="derivative"):
        token_loss(OBJECTIVES["pdm"], REGION, -one, -one, one, one, partition_divergence=one)


@pytest.mark.parametrize("tokens", [1, 2, 30, 301, 1000])
def test_quantiles_of_a_response_are_those_of_torch_at_every_share(tokens: int) -> None:
    values = torch.rand(3, tokens, generator=torch.Generator().manual_seed(tokens))
    for share in (step / 100 for step in range(1, 100)):
        found = quantile(values, torch.ones_like(values), share)
        torch.testing.assert_close(found, values.quantile(share, dim=-1, keepdim=True), rtol=1e-4, atol=1e-5)

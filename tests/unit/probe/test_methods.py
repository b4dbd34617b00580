"""The shares of tokens that each method removes, attenuates or corrects are those of its own loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from synthetic import tokens
from torch import Tensor

from drpo_verl.configuration.search_path import config_dir
from drpo_verl.losses import token_loss
from drpo_verl.losses.partition import TAILS
from drpo_verl.probe.methods import Method, Partition, Responses, effect, effects, measure, methods

ALL = {method.name: method for method in methods()}
TOKEN_MASKS = ["grpo", "grpo_clip_higher", "dppo_binary_tv", "dppo_binary_kl"]


def log(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def responses(
    mu: Tensor, pi: Tensor, partition: Partition | None = None, lengths: list[int] | None = None
) -> Responses:
    """One response, unless told otherwise, with the Top-K of the sampled token alone.

    What is not listed is one bucket, so that the divergences are the binary ones.
    """
    if partition is None:
        partition = Partition(mu[:, None], pi[:, None], torch.ones(len(mu), 1), vocabulary=2)
    return Responses(mu, pi, partition, lengths or [len(mu)])


def both(
    name: str, mu: Tensor, pi: Tensor, partition: Partition | None = None, lengths: list[int] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    positive, negative = effects(ALL[name], responses(mu, pi, partition, lengths))
    return positive, negative


def test_every_method_with_the_defaults_of_its_group() -> None:
    assert {*ALL} == {path.stem for path in (config_dir() / "method").glob("*.yaml")}
    thresholds = {name: method.thresholds for name, method in ALL.items()}
    assert thresholds["drpo"] == {"delta_low": 12.5, "delta_high": 12.5}
    assert thresholds["grpo_clip_higher"] == {"delta_low": 0.2, "delta_high": 0.28, "dual_clip": 1e4}
    assert thresholds["dppo_binary_kl"] == {"delta_low": 0.05, "delta_high": 0.05, "ratio_cap": 5.0}
    assert thresholds["mask_drpo"] == {"delta_low": 12.5, "delta_high": 12.5, "region_delta": 0.15}
    assert thresholds["cispo"] == {"ratio_cap": 1.0} and thresholds["surrogate"] == {}
    assert thresholds["prime_rl"] == {"delta_low": 0.2, "delta_high": 0.2, "log_ratio_penalty": 1e-3}
    budget = {"w_min": 0.8, "delta_b": 0.02, "delta_b_quantile": 0.9}
    assert thresholds["cppo"] == {"delta_low": 0.15, "delta_high": 0.15, **budget}
    assert ALL["dppo_topk_tv"].top_k == 20 and ALL["drpo"].top_k is None
    assert ALL["pdm"].tail == "aggregated" and ALL["drpo"].tail is None


def test_a_ratio_clips_what_hardly_moved_and_lets_pass_what_did() -> None:
    # From 0.001 to 0.0013 and from 0.5 to 0.59: pi/mu is 1.3 and 1.18, abs(pi - mu) is 0.0003 and 0.09.
    mu, pi = log(0.001, 0.5), log(0.0013, 0.59)
    positive, negative = both("grpo", mu, pi)
    assert (positive["removed"], negative["removed"]) == (0.5, 0.0)
    assert [each["removed"] for each in both("dppo_binary_tv", mu, pi)] == [0, 0]
    mu, pi = log(0.5, 0.5), log(0.8, 0.25)
    assert [each["removed"] for each in both("dppo_binary_tv", mu, pi)] == [0.5, 0.5]


def test_weights_of_drpo() -> None:
    (positive, negative) = both("drpo", log(0.5, 0.5), log(0.6, 0.25))
    assert positive["weight_min"] == pytest.approx(1 - 0.1 / 12.5)
    assert negative["weight_min"] == pytest.approx(1 - 0.25 / 12.5)
    assert positive["weight_mean"] == pytest.approx(1 + (0.25 - 0.1) / 2 / 12.5)
    for each in (positive, negative):
        assert (each["removed"], each["attenuated"], each["corrected"], each["strengthened"]) == (0, 0.5, 0, 0.5)


def test_beyond_its_boundary_drpo_corrects() -> None:
    positive, negative = both("drpo_adaptive", log(0.5), log(0.8))
    assert positive["corrected"] == 1 and positive["weight_min"] == pytest.approx(1 - 0.3 / 0.2, abs=1e-5)
    assert negative["strengthened"] == 1


def test_a_capped_ratio_attenuates() -> None:
    for each in both("cispo", log(0.5, 0.5), log(0.6, 0.4)):
        assert each["attenuated"] == 0.5 and each["weight_min"] == pytest.approx(0.5 / 0.6)


def test_the_dual_clip_of_verl_is_part_of_grpo_and_out_of_the_way() -> None:
    mu, pi, grpo = log(0.1), log(0.4), ALL["grpo"]
    at_three = replace(grpo, region=replace(grpo.region, dual_clip=3.0))  # verl's default
    assert [each["removed"] for each in effects(at_three, responses(mu, pi))] == [1, 1]
    assert [each["removed"] for each in both("grpo", mu, pi)] == [1, 0]


def test_minirl_measures_from_the_policy_of_the_trainer() -> None:
    assert [each["removed"] for each in both("minirl", log(0.1), log(0.2))] == [0, 0]


def listed(mu: Tensor, pi: Tensor, vocabulary: int = 3) -> Partition:
    """The Top-K of one position, the sampled token first."""
    return Partition(mu[None], pi[None], torch.ones(1, len(mu)), vocabulary)


def test_top_k_sees_what_was_not_sampled() -> None:
    mu, pi = log(0.1), log(0.1)
    others = listed(log(0.1, 0.8), log(0.1, 0.4))
    # The token itself has not moved: there is no direction in which it could diverge.
    assert [each["removed"] for each in both("dppo_topk_tv", mu, pi, others)] == [0, 0]
    pi = log(0.11)
    others = listed(log(0.1, 0.8), log(0.11, 0.4))
    assert [each["removed"] for each in both("dppo_topk_tv", mu, pi, others)] == [1, 0]
    positive, _ = both("dppo_topk_kl", mu, pi, listed(log(0.1, 0.0), log(0.11, 0.4)))
    assert math.isfinite(positive["weight_mean"])


@pytest.mark.parametrize("tail", TAILS)
def test_a_predictive_method_looks_where_the_update_leads(tail: str) -> None:
    # Vectors of docs/methods.md's source: token 4 has risen, and more of it brings the whole distribution nearer to mu.
    mu, pi = (torch.tensor(each).log() for each in ([0.04, 0.50, 0.20], [0.05, 0.20, 0.60]))
    others = listed(mu, pi, vocabulary=6)
    method = replace(ALL["pdm"], tail=tail)
    predicted = [each["removed"] for each in effects(method, responses(mu[:1], pi[:1], others))]
    assert predicted == [0, 1]
    assert [each["removed"] for each in both("dppo_topk_kl", mu[:1], pi[:1], others)] == [1, 0]


def test_a_response_is_seen_whole() -> None:
    # One of two tokens has moved far: TRM drops its response, the other one keeps its gradient.
    mu, pi = log(0.5, 0.5, 0.5, 0.5, 0.5), log(0.9, 0.5, 0.5, 0.5, 0.5)
    for name in ("trm_max", "trm_avg"):
        for lengths, removed in (([2, 3], 0.4), ([5], 1.0), ([1, 4], 0.2)):
            assert [each["removed"] for each in both(name, mu, pi, lengths=lengths)] == pytest.approx([removed] * 2)


def test_a_prefix_counts_against_the_tokens_behind_it() -> None:
    # The second case of CPPO's vectors: 0.14, then four times 0.05.
    mu = log(*[0.5] * 5)
    pi = log(0.64, *[0.55] * 4)
    at_two = replace(ALL["cppo"].region, prefix_budget=replace(ALL["cppo"].region.prefix_budget, quantile=None))
    cppo = replace(ALL["cppo"], region=at_two)
    assert [each["removed"] for each in effects(cppo, responses(mu, pi))] == pytest.approx([0.8, 0])
    assert [each["removed"] for each in effects(cppo, responses(mu, pi, lengths=[1] * 5))] == [0, 0]
    soft = replace(ALL["cppo_soft"], region=at_two)
    positive, _ = effects(soft, responses(mu, pi))
    assert positive["attenuated"] == pytest.approx(0.8) and positive["weight_min"] == pytest.approx(0.711111, abs=1e-5)
    positive, negative = effects(replace(ALL["drpo_prefix"], region=at_two), responses(mu, pi))
    assert positive["weight_min"] == pytest.approx(-0.406250, abs=1e-5) and negative["strengthened"] == 1


@pytest.mark.parametrize("name", TOKEN_MASKS)
def test_the_shares_are_those_that_training_logs(name: str) -> None:
    each = tokens(4000, error=0.5)
    mu, pi = torch.from_numpy(each.log_mu).float(), torch.from_numpy(each.log_pi).float()
    method: Method = ALL[name]
    for advantage, found in zip((1.0, -1.0), both(name, mu, pi), strict=True):
        ones = torch.ones_like(mu)
        rows = [each[None] for each in (pi, mu, advantage * ones, ones)]
        logged = token_loss(method.objective, method.region, *rows).accumulators.to_host()
        outside = logged.metrics()["trust_region/outside_frac"]
        assert found["removed"] == pytest.approx(outside, abs=1e-6)
        assert found["removed"] > 0


def test_equal_engines_leave_every_method_alone() -> None:
    mu = torch.from_numpy(tokens(100).log_mu).float()
    for name, result in measure(list(ALL.values()), responses(mu, mu, lengths=[60, 1, 39])).items():
        for sign in ("positive_advantage", "negative_advantage"):
            shares = {key: value for key, value in result[sign].items() if not key.startswith("weight")}
            assert not any(shares.values()), (name, shares)
            assert result[sign]["weight_mean"] == 1


def test_counting() -> None:
    counted = effect(torch.tensor([0.0, 0.5, 1.0, 1.5, -0.5, 1.0, 1.0, 1.0]))
    shares = dict.fromkeys(("removed", "attenuated", "corrected", "strengthened"), 0.125)
    assert counted == {**shares, "weight_mean": pytest.approx(0.6875), "weight_min": -0.5}

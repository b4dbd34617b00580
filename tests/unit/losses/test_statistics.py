"""Statistics are exact over the tokens, however the batch is cut."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drpo_verl.losses import OBJECTIVES, TokenStatistics, TrustRegion, token_loss

DELTA = 0.1
REGION = TrustRegion(DELTA, DELTA, region_delta=0.05)
EVERYWHERE = TrustRegion(1.0, 1.0)  # no probability moves by more


def _batch(seed: int, rows: int = 12, width: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_mu = -6 * torch.rand(rows, width, generator=generator)
    log_pi = (log_mu + 0.5 * torch.randn(rows, width, generator=generator)).clamp(max=0)
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, width)
    lengths = torch.randint(0, width + 1, (rows, 1), generator=generator)
    lengths[0] = width
    return log_pi, log_mu, advantages, torch.arange(width) < lengths


def _partition(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    # Any divergence of the token's own size will do.
    return 0.8 * (log_pi.exp() - log_mu.exp()).abs()


def _statistics(name: str, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> TokenStatistics:
    region = REGION if OBJECTIVES[name].enforcement.needs_threshold else EVERYWHERE
    return token_loss(
        OBJECTIVES[name], region, *batch, partition_divergence=_partition(*batch[:2]), diagnostics=False
    ).accumulators.to_host()


@pytest.mark.parametrize("name", list(OBJECTIVES)[: list(OBJECTIVES).index("drpo_adaptive") + 1])
def test_metrics_are_what_their_names_say(name: str) -> None:
    log_pi, log_mu, advantages, mask = batch = _batch(0)
    log_pi, log_mu, advantage = (x[mask].double() for x in (log_pi, log_mu, advantages))
    pi, mu, partition = log_pi.exp(), log_mu.exp(), _partition(log_pi, log_mu)
    diverging = advantage * (pi - mu) > 0

    # w is what the gradient of the explicit objective is, per unit of A r.
    log_pi.requires_grad_()
    explicit = oracle.objective(name, REGION, log_pi, log_mu, advantage, log_anchor=log_mu, partition=partition)
    log_pi_gradient = torch.autograd.grad(explicit.sum(), log_pi)[0]
    log_pi = log_pi.detach()
    weight = log_pi_gradient / (advantage * pi / mu)
    if OBJECTIVES[name].enforcement.needs_threshold:
        boundary = "dppo_binary_tv" if name.startswith("drpo") and name != "drpo_topk" else name
        threshold = REGION.region_delta if name == "mask_drpo" else DELTA
        outside = oracle.masked_out(boundary, REGION, log_pi, log_mu, advantage, partition, threshold=threshold)
    else:
        outside = torch.zeros_like(diverging)
    assert outside.any() or name in ("surrogate", "pg_tis"), "nothing is outside: the case tests nothing"

    def share(condition: Tensor) -> float:
        return condition.double().mean().item()

    expected = {
        "mismatch/abs_prob_diff_mean": (pi - mu).abs().mean().item(),
        "mismatch/abs_prob_diff_max": (pi - mu).abs().max().item(),
        "mismatch/ratio_max": (pi / mu).max().item(),
        "mismatch/kl": (pi / mu - 1 - (pi / mu).log()).mean().item(),
        "mismatch/behaviour_log_prob_mean": mu.log().mean().item(),
        "mismatch/partition_divergence_mean": partition.mean().item(),
        "mismatch/partition_divergence_max": partition.max().item(),
        "trust_region/weight_mean": weight.mean().item(),
        "trust_region/weight_min": weight.min().item(),
        "trust_region/diverging_frac": share(diverging),
        "trust_region/outside_frac": share(outside),
        "trust_region/outside_frac_positive_advantage": share(outside & (advantage > 0)),
        "trust_region/outside_frac_negative_advantage": share(outside & (advantage < 0)),
        "trust_region/corrective_frac": share(weight < -1e-12),
    }
    assert _statistics(name, batch).metrics() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@settings(max_examples=50)
@given(cuts=st.sets(st.integers(1, 11), max_size=11), seed=st.integers(0, 5))
def test_any_cut_into_micro_batches_gives_the_same_metrics(cuts: set[int], seed: int) -> None:
    batch = _batch(seed)
    sizes = [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 12], strict=True)]
    parts = [_statistics("drpo", tuple(micro)) for micro in zip(*(x.split(sizes) for x in batch), strict=True)]  # type: ignore[arg-type]
    whole = _statistics("drpo", batch)
    assert TokenStatistics.merge(parts).metrics() == pytest.approx(dict(whole.metrics()), rel=2e-6, abs=1e-9)
    assert TokenStatistics.merge(parts).maxima == whole.maxima and TokenStatistics.merge(parts).minima == whole.minima


@pytest.mark.parametrize("name", ["drpo", "spo", "mask_drpo", "dppo_binary_kl"])
def test_padding_takes_no_digits_away(name: str) -> None:
    # The metric of 20 tokens and of the same tokens in rows of 16384: at delta = 12.5, w is 1 to four digits.
    region = TrustRegion(12.5, 12.5, region_delta=0.05)
    wide = _batch(2, rows=2, width=16384)
    tokens = torch.arange(16384) < 10
    results = []
    for width in (10, 16384):
        log_pi, log_mu, advantages, _ = (x[:, :width] for x in wide)
        mask = tokens[:width].expand(2, width)
        rows = token_loss(OBJECTIVES[name], region, log_pi, log_mu, advantages, mask, diagnostics=False)
        results.append(dict(rows.accumulators.to_host().metrics()))
    narrow, padded = results
    assert padded == pytest.approx(narrow, rel=1e-7, abs=1e-9)


def test_a_batch_without_tokens_has_no_metrics_and_changes_none() -> None:
    log_pi, log_mu, advantages, mask = batch = _batch(1)
    empty = _statistics("drpo", (log_pi, log_mu, advantages, torch.zeros_like(mask)))
    whole = _statistics("drpo", batch)
    assert empty.tokens == 0 and set(empty.metrics().values()) == {0.0}
    assert empty.metrics().keys() == whole.metrics().keys()  # verl wants the same of every micro-batch
    assert TokenStatistics.merge([empty, whole, empty]).metrics() == whole.metrics()


def test_extrema_do_not_see_padding() -> None:
    # Every token converges: all weights are above 1 and all ratios below 1, where padding would show up as 1.
    log_mu, log_pi = torch.tensor([[-0.1, -0.1]]), torch.tensor([[-1.0, -1.0]])
    metrics = _statistics("drpo", (log_pi, log_mu, torch.ones(1, 2), torch.tensor([[True, False]]))).metrics()
    assert metrics["trust_region/weight_min"] > 1.0
    assert metrics["mismatch/ratio_max"] == pytest.approx(math.exp(-0.9))


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_a_behaviour_log_probability_that_is_no_number_is_noticed(value: float) -> None:
    log_pi, log_mu, advantages, mask = _batch(2)
    log_mu = log_mu.clone()
    log_mu[0, 3] = value
    assert not _statistics("drpo", (log_pi, log_mu, advantages, mask)).behaviour_is_finite
    assert _statistics("drpo", _batch(2)).behaviour_is_finite


@pytest.mark.parametrize(("name", "outside"), [("dppo_binary_tv", [2, 1, 1]), ("ipo", [5, 2, 2])])
def test_tokens_outside_by_the_sign_of_their_advantage(name: str, outside: list[int]) -> None:
    # All five have moved by more than delta; one has no advantage, which matters only where there is no direction.
    log_mu = torch.full((1, 5), 0.5).log()
    log_pi = torch.tensor([[0.8, 0.2, 0.8, 0.2, 0.8]]).log()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0, 0.0]])
    loss = token_loss(OBJECTIVES[name], REGION, log_pi, log_mu, advantages, torch.ones(1, 5))
    metrics = loss.accumulators.to_host().metrics()
    found = [metrics[f"trust_region/outside_frac{of}"] for of in ("", "_positive_advantage", "_negative_advantage")]
    assert found == pytest.approx([count / 5 for count in outside])

"""verl's metrics of the mismatch against verl's own functions, over one micro-batch and over several merged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from verl import DataProto
from verl.trainer.ppo.rollout_corr_helper import compute_offpolicy_metrics
from verl.utils.debug.metrics import calculate_debug_metrics

from drpo_verl.losses import OBJECTIVES, TrustRegion, step_metrics, token_loss
from drpo_verl.metrics.names import OF_VERL

LOGGED_OF_VERL = ("kl", "k3_kl", "chi2_token", "ppl_ratio", "log_ppl_diff")


def _batch(seed: int, spread: float, rows: int = 9, width: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_mu = -(torch.rand(rows, width, generator=generator) ** 3) * 12
    log_pi = (log_mu + spread * torch.randn(rows, width, generator=generator)).clamp(max=0)
    lengths = torch.randint(0, width + 1, (rows, 1), generator=generator)
    lengths[0], lengths[1] = 0, 1  # an empty response, and one of a single token
    return log_pi, log_mu, torch.arange(width) < lengths


def _ours(log_pi: Tensor, log_mu: Tensor, mask: Tensor, sizes: list[int]) -> dict[str, float]:
    parts = []
    for pi, mu, is_token in zip(*(each.split(sizes) for each in (log_pi, log_mu, mask)), strict=True):
        loss = token_loss(OBJECTIVES["drpo"], TrustRegion(0.1, 0.1), pi, mu, torch.ones_like(pi), is_token)
        parts.append(loss.accumulators.to_host())
    metrics = step_metrics(parts, with_names_of_verl=True)
    assert step_metrics(parts).items() <= metrics.items()
    return {name: value for name, value in metrics.items() if name.startswith(OF_VERL)}


def _of_verl(log_pi: Tensor, log_mu: Tensor, mask: Tensor) -> dict[str, float]:
    log_pi, log_mu = log_pi.double(), log_mu.double()
    tensors = {"rollout_log_probs": log_mu, "old_log_probs": log_pi, "response_mask": mask, "responses": log_mu}
    debug = calculate_debug_metrics(DataProto.from_dict(tensors))
    assert debug.pop("training/rollout_probs_diff_valid") == 1
    off_policy = compute_offpolicy_metrics(log_pi, log_mu, mask)
    return {**debug, **{f"rollout_corr/{name}": off_policy[name] for name in LOGGED_OF_VERL}}


@pytest.mark.parametrize("sizes", [[9], [4, 5], [1] * 9])
@pytest.mark.parametrize("spread", [1e-3, 0.3, 2.0])
def test_they_are_those_of_verl(spread: float, sizes: list[int]) -> None:
    for seed in range(5):
        batch = _batch(seed, spread)
        assert _ours(*batch, sizes) == pytest.approx(_of_verl(*batch), rel=1e-5, abs=1e-8)


def test_a_token_that_pi_has_given_up_counts_in_full() -> None:
    log_pi, log_mu, mask = _batch(0, 0.3)
    log_pi[2, 0], log_mu[2, 0], mask[2, 0] = -35.0, -0.1, True  # log r is clamped to -20 elsewhere
    assert _ours(log_pi, log_mu, mask, [4, 5]) == pytest.approx(_of_verl(log_pi, log_mu, mask), rel=1e-5)


def test_without_tokens_there_is_nothing_and_without_variance_no_correlation() -> None:
    log_pi, log_mu, mask = _batch(0, 0.3)
    assert _ours(log_pi, log_mu, torch.zeros_like(mask), [9]) == {}
    alone = torch.zeros_like(mask)
    alone[3, 0] = True
    assert set(_of_verl(log_pi, log_mu, mask)) - set(_ours(log_pi, log_mu, alone, [9])) == {
        "training/rollout_probs_diff_std", "training/rollout_actor_probs_pearson_corr",
    }  # fmt: skip

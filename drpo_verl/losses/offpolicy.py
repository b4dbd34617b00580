"""The mismatch under the names and definitions that verl logs it by where it recomputes pi_old (verl 0.9).

``rollout_corr/*`` is ``compute_offpolicy_metrics`` of ``verl.trainer.ppo.rollout_corr_helper``, ``training/rollout_*``
is ``calculate_debug_metrics`` of ``verl.utils.debug.metrics``. In bypass mode verl has no pi_old and logs neither. In
the first mini-batch after a weight sync pi is pi_old, so that both can be made from the sums over its tokens: nearly
all from the moments in ``diagnostics``, the rest from ``response_sums``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def response_sums(log_ratio: Tensor, is_token: Tensor) -> Tensor:
    """What is measured of whole responses, ``[4]``; adds up over micro-batches and ranks.

    Args:
        log_ratio: log pi - log mu, not clamped, 0 where ``is_token`` is; ``[B, T]``.
        is_token: 1 for a response token, else 0, ``[B, T]`` fp32.

    Returns:
        The number of responses (an empty one counts, as it does for verl); the sums over responses of log p and p, p
        being the perplexity under pi divided by that under mu; the sum of ``log_ratio``.
    """
    of_responses = log_ratio.sum(-1)
    log_perplexity = -of_responses / is_token.sum(-1).clamp(min=1.0)
    of_each = [torch.ones_like(of_responses), log_perplexity, log_perplexity.exp(), of_responses]
    return torch.stack(of_each).sum(-1)


def verl_metrics(
    moments: Mapping[str, float], responses: Sequence[float], series: Mapping[str, float]
) -> dict[str, float]:
    """Verl's metrics of a step, from sums over the tokens of its first mini-batch.

    All of them are verl's to rounding, but for tokens with log r > 20: verl bounds log r in its chi2_token, and here it
    is bounded in k3_kl, too.

    Args:
        moments: the sums ``tokens``, ``log_ratio``, ``k3``, ``chi2``, ``abs_diff`` and ``diff_squared`` by name.
        responses: the sum of ``response_sums`` over the micro-batches.
        series: the metrics of ``inference_mismatch/`` without their namespace, some of which verl has as well.

    Returns:
        By the names that verl logs; none without tokens. Without a correlation where pi or mu is constant, and without
        a standard deviation of a single token, for which verl has NaN.
    """
    tokens = moments["tokens"]
    if tokens == 0:
        return {}
    count, log_perplexity, perplexity, log_ratio = responses
    ratio_minus_one = moments["k3"] + moments["log_ratio"]
    metrics = {
        "rollout_corr/kl": -log_ratio / tokens,
        "rollout_corr/k3_kl": (ratio_minus_one - log_ratio) / tokens,
        "rollout_corr/chi2_token": (moments["chi2"] + 2.0 * ratio_minus_one) / tokens,  # r^2 - 1, which would cancel
        "rollout_corr/ppl_ratio": perplexity / count,
        "rollout_corr/log_ppl_diff": log_perplexity / count,
        "training/rollout_probs_diff_mean": series["abs_prob_diff_mean"],
        "training/rollout_probs_diff_max": series["abs_prob_diff_max"],
    }
    if tokens > 1:
        squares = moments["diff_squared"] - moments["abs_diff"] ** 2 / tokens
        metrics["training/rollout_probs_diff_std"] = math.sqrt(max(squares, 0.0) / (tokens - 1))
    if "correlation" in series:
        metrics["training/rollout_actor_probs_pearson_corr"] = series["correlation"]
    return metrics

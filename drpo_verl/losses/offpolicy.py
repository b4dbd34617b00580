"""The mismatch under the names and definitions that verl logs it by where it recomputes pi_old (verl 0.9).

``rollout_corr/*`` is ``compute_offpolicy_metrics`` of ``verl.trainer.ppo.rollout_corr_helper``, ``training/rollout_*``
is ``calculate_debug_metrics`` of ``verl.utils.debug.metrics``. In bypass mode verl has no pi_old and logs neither. In
the first mini-batch after a weight sync pi is pi_old, so that both can be made from sums over its tokens: nearly all
from the moments in ``diagnostics``, the rest from ``measure_responses``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor


def measure_responses(unclamped_log_ratio: Tensor, is_token: Tensor) -> dict[str, Tensor]:
    """Sums over the responses of a micro-batch, scalars on the device.

    Args:
        unclamped_log_ratio: log pi - log mu, 0 at padding; ``[B, T]``.
        is_token: 1 for response tokens and 0 at padding, ``[B, T]``.

    Returns:
        ``responses``, their number (an empty one counts, as it does for verl); ``unclamped_log_ratio``;
        ``perplexity_ratio``, of a response's perplexity under pi divided by that under mu; ``log_perplexity_ratio``, of
        its logarithm.
    """
    log_ratio = unclamped_log_ratio.sum(-1)
    log_perplexity_ratio = -log_ratio / is_token.sum(-1).clamp(min=1)
    return {
        "responses": log_ratio.new_full((), len(log_ratio)),
        "unclamped_log_ratio": log_ratio.sum(),
        "perplexity_ratio": log_perplexity_ratio.exp().sum(),
        "log_perplexity_ratio": log_perplexity_ratio.sum(),
    }


def verl_metrics(tokens: int, moments: Mapping[str, float], series: Mapping[str, float]) -> dict[str, float]:
    """verl's metrics of a step, from sums over the tokens of its first mini-batch.

    All of them are verl's to rounding, but for tokens with log r > 20: verl bounds log r in its chi2_token, and here it
    is bounded in k3_kl, too.

    Args:
        tokens: how many there are; > 0.
        moments: the sums of ``diagnostics.measure_moments``, and those of ``measure_responses``.
        series: the metrics of ``inference_mismatch/`` without their namespace, some of which verl has as well.

    Returns:
        By the names that verl logs; without a correlation where pi or mu is constant, and without a standard deviation
        of a single token, for which verl has NaN.
    """
    mean = {name: moment / tokens for name, moment in moments.items()}
    metrics = {
        "rollout_corr/kl": -mean["unclamped_log_ratio"],
        "rollout_corr/k3_kl": mean["ratio_minus_one"] - mean["unclamped_log_ratio"],
        # The mean of r^2 - 1 as (r - 1)^2 + 2 (r - 1), which does not cancel.
        "rollout_corr/chi2_token": mean["chi2"] + 2.0 * mean["ratio_minus_one"],
        "rollout_corr/ppl_ratio": moments["perplexity_ratio"] / moments["responses"],
        "rollout_corr/log_ppl_diff": moments["log_perplexity_ratio"] / moments["responses"],
        "training/rollout_probs_diff_mean": series["abs_prob_diff_mean"],
        "training/rollout_probs_diff_max": series["abs_prob_diff_max"],
    }
    if tokens > 1:
        variance = max(mean["diff_squared"] - series["abs_prob_diff_mean"] ** 2, 0.0) * tokens / (tokens - 1)
        metrics["training/rollout_probs_diff_std"] = math.sqrt(variance)
    if "correlation" in series:
        metrics["training/rollout_actor_probs_pearson_corr"] = series["correlation"]
    return metrics

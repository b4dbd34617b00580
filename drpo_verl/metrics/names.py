"""The names of logged metrics that more than one room of the package uses; ``catalogue`` describes all of them."""

from __future__ import annotations

TRUST_REGION = "trust_region"
MISMATCH = "mismatch"
"""The distance of pi from mu over all tokens of a step."""
INFERENCE_MISMATCH = "inference_mismatch"
"""The same over the tokens of the step's first mini-batch, in which pi has the weights that sampled."""
POLICY_DRIFT = "policy_drift"
"""The same over the tokens of the step's later mini-batches."""
BY_PROBABILITY = "_by_prob"
"""Appended to either of the two: the same by the probability mu."""

NAMESPACES = tuple(
    f"{name}/"
    for name in (
        TRUST_REGION,
        MISMATCH,
        *(series + suffix for series in (INFERENCE_MISMATCH, POLICY_DRIFT) for suffix in ("", BY_PROBABILITY)),
    )
)
"""The beginnings of the names that nobody but drpo-verl logs."""

OF_VERL = ("rollout_corr/", "training/rollout_")
"""The beginnings of names that verl itself logs where it recomputes pi_old, and drpo-verl in bypass mode."""

REWARD = "critic/score/mean"
ENTROPY = "actor/entropy"
LOSS_SCALE = "actor/loss_scale"
SKIPPED_UPDATES = "actor/skipped_update_frac"
STEP_SECONDS = "timing_s/step"

DELTA = f"{TRUST_REGION}/delta"
CORRECTED = f"{TRUST_REGION}/corrective_frac"
DIVERGING = f"{TRUST_REGION}/diverging_frac"
OUTSIDE = f"{TRUST_REGION}/outside_frac"
SEQUENCE_MASKED = f"{TRUST_REGION}/sequence_masked_frac"
WEIGHT_MEAN = f"{TRUST_REGION}/weight_mean"
WEIGHT_MIN = f"{TRUST_REGION}/weight_min"
ANCHOR_ABS_PROB_DIFF_MEAN = f"{TRUST_REGION}/anchor_abs_prob_diff_mean"
ANCHOR_ABS_PROB_DIFF_MAX = f"{TRUST_REGION}/anchor_abs_prob_diff_max"

KL = f"{MISMATCH}/kl"
RATIO_MAX = f"{MISMATCH}/ratio_max"
ABS_PROB_DIFF_MEAN = f"{MISMATCH}/abs_prob_diff_mean"
ABS_PROB_DIFF_MAX = f"{MISMATCH}/abs_prob_diff_max"
MISMATCH_MEAN = f"{INFERENCE_MISMATCH}/abs_prob_diff_mean"
"""Mean abs(pi - mu) before any update on a rollout: the two engines alone."""
DRIFT_MEAN = f"{POLICY_DRIFT}/abs_prob_diff_mean"
"""Mean abs(pi - mu) after updates on a rollout: what they have moved, on top of the mismatch."""
DRIFT_FROM_ANCHOR_MEAN = f"{POLICY_DRIFT}/anchor_abs_prob_diff_mean"
"""Mean abs(pi - pi_old) after updates on a rollout, where pi_old is recomputed: what they have moved, alone."""
BEHAVIOUR_LOG_PROB = f"{MISMATCH}/behaviour_log_prob_mean"
PARTITION_DIVERGENCE = f"{MISMATCH}/partition_divergence_mean"

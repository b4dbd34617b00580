"""What is logged, each metric described once, for the tables of ``docs/metrics.md``, reports and the wandb workspace.

pi is the policy being trained, mu the behaviour policy (the rollout engine), r = pi / mu, A the advantage, all of the
sampled token.
"""

from __future__ import annotations

from drpo_verl.metrics import names
from drpo_verl.metrics.bins import PROBABILITY_BINS
from drpo_verl.metrics.description import Metric, Panel, Section

_BINS = ", ".join(f"`{name}`" for name in PROBABILITY_BINS)
_STALENESS = "training/off_policy/trajectory_staleness"
_SERIES = ((names.INFERENCE_MISMATCH, "Mismatch"), (names.POLICY_DRIFT, "Drift"))


def _by_sign(name: str, meaning: str, bad: str = "") -> list[Metric]:
    return [
        Metric(f"{name}_positive_advantage", f"{meaning} with A > 0", label="positive advantage"),
        Metric(f"{name}_negative_advantage", f"{meaning} with A < 0", bad, "negative advantage"),
    ]


SECTIONS = (
    Section("learning", "Learning", "", (
        Panel("Reward", "mean reward of a sample", [
            Metric(names.REWARD, "Mean over the samples that the step trained on",
                   "a fall, before which mismatch and entropy have moved")]),
        Panel("Held-out accuracy", "share of problems solved", [
            Metric("val-core/<source>/<score>/mean@<n>",
                   "On the validation problems of a data source, mean over n samples of each")], kind="held_out"),
        Panel("Entropy of the policy", "nats per token", [
            Metric(names.BEHAVIOUR_LOG_PROB, "Mean log μ of the sampled tokens, whose negative estimates the entropy",
                   "towards 0, the policy collapses; towards − log V, it dissolves", "estimate from the samples", -1.0),
            Metric(names.ENTROPY, "The entropy itself, where verl computes it", "towards 0, the policy collapses",
                   "exact")]),
        Panel("Length of a response", "tokens", [Metric("response_length/mean", "Mean over the step's samples")]),
        Panel("Responses of the longest length", "share of samples", [
            Metric("response_length/clip_ratio", "As long as the step's longest: truncated, where that is the limit",
                   "rising: rewards are lost to the limit")]),
        Panel("Gradient norm", "L2 norm before clipping", [
            Metric("actor/grad_norm", "Of the whole gradient, mean over the step's updates", "peaks, a steady rise")]),
        Panel("Loss scale", "", [
            Metric(names.LOSS_SCALE, "What the loss is multiplied by before its gradients are computed in fp16 "
                   "(`precision=fp16`, FSDP)", "below 1: gradients overflow whatever their scale")], log=True),
        Panel("Updates left out", "share of updates", [
            Metric(names.SKIPPED_UPDATES, "Updates that are left out since gradients of fp16 overflow",
                   "above 0.5 for some steps: the run learns little; single ones are usual")]),
    )),
    Section("mismatch_and_drift", "Mismatch and drift",
        "Two reasons why a sampled token has another probability in the policy being trained, π, than it had in the "
        "rollout engine, μ. Mismatch: the two engines compute the same weights differently (kernels, precision, "
        "routing); it is there before any update. Drift: updates on the same rollout move π away from μ.",
    (
        Panel("How far apart π and μ are", "mean change in probability", [
            Metric(names.MISMATCH_MEAN, "Mean abs(π − μ) over the first mini-batch after a rollout: the engines alone",
                   "rising: the engines come apart; fp32 on both sides has 10⁻⁷, bf16 against fp32 10⁻³ to 10⁻²",
                   "mismatch: before any update"),
            Metric(names.DRIFT_MEAN, "Mean abs(π − μ) over the later mini-batches: what is above the mismatch is drift",
                   "rising: the updates are large", "mismatch and drift: after updates"),
            Metric(names.DRIFT_FROM_ANCHOR_MEAN, "Mean abs(π − π_old) over the later mini-batches, where π_old is "
                   "recomputed as anchor", "rising: the updates are large", "drift alone: from π_old")]),
    )),
    Section("trust_region", "Trust region",
        "What the method did about the distance of π, the policy being trained, from μ, the rollout engine's. The "
        "gradient of each token is multiplied by a weight w. A token is diverging when its gradient pushes π further "
        "away from μ. r = π/μ is the token's importance ratio, C the cap on it, A the token's advantage.",
    (
        Panel("Gradient weight w", "weight w", [
            Metric(names.WEIGHT_MEAN, "Mean w over the tokens: 1 leaves a token alone, 0 drops it, and a negative one "
                   "brings it back", "far below 1: little is learned from", "mean"),
            Metric(names.WEIGHT_MIN, "The smallest w", label="smallest")], reference=0.0),
        Panel("Outside the trust region", "share of tokens", [
            Metric(names.OUTSIDE, "Diverging tokens beyond the boundary, spared by `restrict_to` or not",
                   "0, δ binds nothing (always so for δ = 12.5); above 0.05, most of the learning is masked")]),
        Panel("Outside, by the sign of the advantage", "share of tokens", _by_sign(
            names.OUTSIDE, "Tokens outside", "rising: these tokens are made less likely, and far outside they are what "
            "collapses a policy (DPPO paper)")),
        Panel("Diverging tokens", "share of tokens", [
            Metric(names.DIVERGING, "Tokens that their gradient pushes further away from μ, inside the boundary or not",
                   "far from a half; fp32 noise counts too")]),
        Panel("Corrected and attenuated tokens", "share of tokens", [
            Metric(names.CORRECTED, "Tokens with w < 0, whose gradient brings them back; a mask, as "
                   "DPPO's and PPO's, never does", "rising for many steps: updates overshoot, lower the learning rate",
                   "corrected"),
            Metric("trust_region/attenuated_frac", "Tokens with 0 < w < 1", label="attenuated")]),
        Panel("Gradient removed", "share of the gradient", [
            Metric("trust_region/gradient_removed_frac", "What w (cut to [0, 1]) takes away of Σ abs(A) min(r, C), the "
                   "L1 norm of the loss's gradient with respect to the tokens' log π", "above 0.2")]),
        Panel("Responses left out", "share of tokens", [
            Metric(names.SEQUENCE_MASKED, "Tokens of responses that `sequence_mask` leaves out of the update; not "
                   "logged without one", "above 0.5: most of what was sampled teaches nothing")]),
        Panel("Distance from a recomputed π_old", "probability", [
            Metric(names.ANCHOR_ABS_PROB_DIFF_MEAN, "Mean abs(π − π_old), where that is the anchor: 0 in the first "
                   "mini-batch", "rising from step to step: the updates are large", "mean"),
            Metric(names.ANCHOR_ABS_PROB_DIFF_MAX, "The largest abs(π − π_old)", label="largest")], log=True),
        Panel("Threshold δ", "in the method's unit", [
            Metric(names.DELTA, "The step's δ, where it moves (`drpo_adaptive`)",
                   "at `delta_min` or `delta_max`: the target is out of reach")], log=True),
    )),
    Section("distance", "Distance of π from μ",
        "Over all tokens of a step and all its updates: engine mismatch and policy drift together.",
    (
        Panel("Change in probability", "probability", [
            Metric(names.ABS_PROB_DIFF_MEAN, "Mean abs(π − μ), the distance that DRPO and DPPO-TV bound",
                   "rising from step to step; fp32 on both sides has 10⁻⁷, bf16 against fp32 10⁻³ to 10⁻²", "mean"),
            Metric(names.ABS_PROB_DIFF_MAX, "The largest abs(π − μ)",
                   "close to 1: a token that one engine takes for certain and the other for impossible, a bug "
                   "(vocabulary, template, stale weights) more often than precision", "largest")], log=True),
        Panel("KL divergence", "nats per token", [
            Metric("mismatch/kl", "KL(μ ‖ π), estimated by k3 = r − 1 − log r", "above 0.01, or rising")], log=True),
        Panel("Largest ratio", "π/μ", [
            Metric("mismatch/ratio_max", "The largest r, which PPO's clipping looks at: noisy where μ is small",
                   "above 100: ratio methods act on noise of rare tokens")], log=True),
        Panel("Unlikely tokens", "share of tokens", [
            Metric("mismatch/low_prob_frac", "Sampled tokens with μ ≤ 0.01",
                   "above the DRPO paper's 0.078: more for the ratio to go wrong on")]),
        Panel("Divergence over the Top-K tokens", "in the method's unit", [
            Metric(names.PARTITION_DIVERGENCE, "Mean of what Top-K methods bound: total variation, or KL in nats",
                   "as for abs(π − μ), which the total variation is never below", "mean"),
            Metric("mismatch/partition_divergence_max", "The largest such divergence", label="largest")], log=True),
    )),
    Section("engines", "Mismatch and drift in detail",
        "Mismatch (`inference_mismatch/`): the tokens of the first mini-batch after a rollout. π still has the weights "
        "that sampled, so that all distance is that of two engines: kernels, precision, routing, and with an "
        "asynchronous trainer the versions in between. Drift (`policy_drift/`): the later mini-batches, to which the "
        "updates since have added; there are none with one mini-batch per rollout.",
    (
        Panel("change in probability", "probability", [
            Metric("abs_prob_diff_p99", "The 99th percentile of abs(π − μ)",
                   "near δ: the mismatch alone leaves the trust region", "99th percentile"),
            Metric("abs_prob_diff_max", "The largest abs(π − μ)", "close to 1, as over all tokens", "largest"),
            Metric("abs_prob_diff_p50", "The median of abs(π − μ)", label="median")], log=True),
        Panel("KL divergence", "nats per token", [
            Metric("kl_k3", "KL(μ ‖ π), estimated by k3 = r − 1 − log r", "above 0.01 before any update")], log=True),
        Panel("KL divergence, k1", "nats per token", [
            Metric("kl_k1", "KL(μ ‖ π), estimated by − log r", "below 0, it is noise; far from k3, tails are heavy")]),
        Panel("χ² divergence", "", [
            Metric("chi2", "Mean (r − 1)², about the variance of the importance ratios; dominated by rare tokens",
                   "above 1: importance sampling is unreliable")], log=True),
        Panel("effective sample size", "share of tokens", [
            Metric("ess", "(Σ r)² / (n Σ r²) over n tokens: 1 is on-policy",
                   "below 0.9: a few tokens carry the gradient")]),
        Panel("ratio", "π/μ", [
            Metric("ratio_p99", "The 99th percentile of r", label="99th percentile"),
            Metric("ratio_p50", "The median of r", "away from 1: a bias, such as a temperature that differs", "median"),
            Metric("ratio_p01", "The first percentile of r", label="1st percentile"),
            Metric("ratio_max", "The largest r", "above 100, as over all tokens", "largest")], log=True),
        Panel("correlation", "Pearson's r", [
            Metric("correlation", "Correlation of π and μ; not logged where one of them is constant",
                   "below 0.99 before any update")]),
        Panel("by the sign of the advantage", "probability", _by_sign(
            "abs_prob_diff_mean", "Mean abs(π − μ) over tokens", "far above the other: rare tokens are pushed down"),
            log=True),
    ), _SERIES),
    Section("probability", "Distance by probability",
        "Which tokens the distance of π from μ is in, by the probability μ that they were sampled with "
        f"(`inference_mismatch_by_prob/`, `policy_drift_by_prob/`). The bins: {_BINS}; upper edges belong to them.",
    (
        Panel("distance in each bin", "probability", [
            Metric("abs_prob_diff_<bin>", "Mean abs(π − μ) over the bin's tokens; not logged without any",
                   "in the mismatch, more in `gt_0.99` than in the middle, which is not precision; of rare tokens, a "
                   "drift far above the mismatch: the updates move what was hardly ever sampled")],
            kind="bins", log=True),
        *(Panel(f"distance, {metric.label}", "probability", [metric], kind="bins", log=True) for metric in _by_sign(
            "abs_prob_diff_<bin>", "Mean abs(π − μ) over the bin's tokens",
            "far above the other in the lowest bins: rare tokens are pushed down")),
        Panel("tokens in each bin", "share of tokens", [Metric("share_<bin>", "Tokens in the bin")], kind="bins"),
        Panel("", "share of tokens", _by_sign("share_<bin>", "Tokens in the bin"), kind="bins"),
    ), tuple((series + names.BY_PROBABILITY, title) for series, title in _SERIES)),
    Section("verl_names", "Mismatch by verl's names",
        "As verl names and defines it, to compare with the runs of others. Where verl recomputes π_old (`bypass_mode: "
        "False`), it logs these itself; in bypass mode drpo-verl does, over the tokens of the step's first mini-batch.",
    (
        Panel("KL divergence", "nats per token", [
            Metric("rollout_corr/kl", "KL(μ ‖ π), estimated by − log r", "below 0, it is noise", "k1"),
            Metric("rollout_corr/k3_kl", "KL(μ ‖ π), estimated by k3 = r − 1 − log r", "above 0.01", "k3")]),
        Panel("χ² divergence", "", [Metric("rollout_corr/chi2_token", "Mean r² − 1", "above 1")]),
        Panel("Ratio of perplexities", "", [
            Metric("rollout_corr/ppl_ratio", "Perplexity of a response under π by that under μ, mean over responses",
                   "away from 1")]),
        Panel("Difference of log-perplexities", "nats per token", [
            Metric("rollout_corr/log_ppl_diff", "The logarithm of that ratio, mean over responses", "away from 0")]),
        Panel("Difference in probability", "probability", [
            Metric("training/rollout_probs_diff_mean", "Mean abs(π − μ)", "above 0.01", "mean"),
            Metric("training/rollout_probs_diff_max", "The largest abs(π − μ)", "close to 1", "largest"),
            Metric("training/rollout_probs_diff_std", "The standard deviation of abs(π − μ)",
                   label="standard deviation")], log=True),
        Panel("Correlation", "Pearson's r", [
            Metric("training/rollout_actor_probs_pearson_corr", "Correlation of π and μ", "below 0.99")]),
    )),
    Section("time", "Time and staleness", "", (
        Panel("Time of a step", "seconds", [
            Metric(names.STEP_SECONDS, "From one step's start to the next. The first one warms up")]),
        Panel("Where the time goes", "seconds per step", [
            Metric("timing_s/<phase>", "Time of each phase of a step; some overlap")], kind="phases"),
        Panel("Throughput", "tokens per second and device", [Metric("perf/throughput", "Prompt and response tokens")]),
        Panel("Staleness of the samples", "weight versions", [
            Metric(f"{_STALENESS}/mean", "How many updates π is ahead of the last weights that sampled a response, "
                   "mean over responses", "rising: the rollout falls behind the trainer", "mean"),
            Metric(f"{_STALENESS}/max", "The largest over responses", label="largest")], unless_zero=True),
    )),
)  # fmt: skip
"""All that reports, the wandb workspace and the documentation show, in this order."""

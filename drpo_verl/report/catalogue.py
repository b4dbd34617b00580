"""Which charts a report has, in which order and with which words: data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from drpo_verl.run_folder.steps import REWARD

Format = Literal["", "share"]


@dataclass(frozen=True)
class Line:
    """A metric of a chart.

    Args:
        metric: its name in the metrics file.
        label: what it is beside the chart's other lines; the first is drawn solid, then dashed, then dotted.
        scale: a factor for its values.
    """

    metric: str
    label: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Curves:
    """A chart over the training steps.

    Args:
        key: of the chart; unique.
        title: above it.
        unit: the title of its vertical axis.
        lines: those that no run has are left out, and the chart with them.
        caption: below it; metric names in backquotes.
        ticks: how the vertical axis is labelled.
        log: whether that axis is logarithmic.
        reference: a horizontal line to compare with.
        shared_axis: charts of the same name have the same vertical range.
        unless_zero: left out where all is 0, as it is by construction for some trainers.
    """

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    caption: str
    ticks: Format = ""
    log: bool = False
    reference: float | None = None
    shared_axis: str | None = None
    unless_zero: bool = False


@dataclass(frozen=True)
class HeldOut:
    """Held-out accuracy, with intervals."""

    key: str
    title: str
    unit: str
    caption: str


@dataclass(frozen=True)
class Bars:
    """A chart of the last steps, with a category for each metric.

    Args:
        key: of the chart; unique.
        title: above it.
        axis: the title of the categories' axis.
        unit: the title of the values' axis.
        categories: their labels, with the metric of each.
        caption: below it.
        ticks: how the values' axis is labelled.
        log: whether that axis is logarithmic.
        shared_axis: charts of the same name have the same range of values.
    """

    key: str
    title: str
    axis: str
    unit: str
    categories: tuple[tuple[str, str], ...]
    caption: str
    ticks: Format = ""
    log: bool = False
    shared_axis: str | None = None


@dataclass(frozen=True)
class Phases:
    """Seconds of each phase of a step, one horizontal bar a group."""

    key: str
    title: str
    unit: str
    caption: str


Chart = Curves | HeldOut | Bars | Phases


@dataclass(frozen=True)
class Section:
    """Charts under a heading."""

    key: str
    title: str
    text: str
    charts: tuple[Chart, ...]


PHASE_PREFIX = "timing_s/"
STEP_SECONDS = "timing_s/step"

_STALENESS = "training/off_policy/trajectory_staleness"
_SIGNS = ("positive advantage", "negative advantage")

_BINS = {
    "le_1e-4": "≤ 0.0001",
    "1e-4_1e-3": "0.0001–0.001",
    "1e-3_1e-2": "0.001–0.01",
    "1e-2_0.1": "0.01–0.1",
    "0.1_0.5": "0.1–0.5",
    "0.5_0.9": "0.5–0.9",
    "0.9_0.99": "0.9–0.99",
    "gt_0.99": "> 0.99",
}


def _share(key: str, title: str, caption: str) -> Curves:
    return Curves(key, title, "share of tokens", (Line(f"trust_region/{key}"),), caption, ticks="share")


_LEARNING = Section(
    "learning", "Learning", "",
    (
        Curves(
            "reward", "Reward", "mean reward of a sample", (Line(REWARD),),
            "Mean over the samples that the step trained on (`critic/score/mean`).",
        ),
        HeldOut(
            "held_out", "Held-out accuracy", "share of problems solved",
            "Accuracy on the validation problems (`val-core/…`). Bars: for one run its 95 % Wilson interval over the "
            "problems, where their number is known; for several, the least and the most accurate.",
        ),
        Curves(
            "entropy", "Entropy of the policy", "nats per token",
            (
                Line("mismatch/behaviour_log_prob_mean", "estimate from the samples", -1.0),
                Line("actor/entropy", "exact"),
            ),
            "Minus the mean log-probability that the rollout engine gave to the tokens it sampled "
            "(`mismatch/behaviour_log_prob_mean`); `actor/entropy` where it is computed. A fall towards 0 is collapse.",
        ),
        Curves(
            "response_length", "Length of a response", "tokens", (Line("response_length/mean"),),
            "Mean over the step's samples (`response_length/mean`).",
        ),
        Curves(
            "truncated", "Responses of the longest length", "share of samples", (Line("response_length/clip_ratio"),),
            "Samples as long as the step's longest (`response_length/clip_ratio`): truncated, where that is the limit.",
            ticks="share",
        ),
        Curves(
            "grad_norm", "Gradient norm", "L2 norm before clipping", (Line("actor/grad_norm"),),
            "Of the whole gradient, mean over the step's updates (`actor/grad_norm`).",
        ),
    ),
)  # fmt: skip

_TRUST_REGION = Section(
    "trust_region", "Trust region",
    "What the method did about the distance of π, the policy being trained, from μ, the rollout engine's. The gradient "
    "of each token is multiplied by a weight w. A token is diverging when its gradient pushes π further away from μ.",
    (
        Curves(
            "weight", "Gradient weight w", "weight w",
            (Line("trust_region/weight_mean", "mean"), Line("trust_region/weight_min", "smallest")),
            "Over the step's tokens (`trust_region/weight_mean`, `…_min`). 1 leaves a token alone, 0 drops it, below 0 "
            "brings it back.", reference=0.0,
        ),
        _share("outside_frac", "Outside the trust region",
               "Tokens beyond the boundary and diverging (`trust_region/outside_frac`)."),
        Curves(
            "outside_by_sign", "Outside, by the sign of the advantage", "share of tokens",
            tuple(Line(f"trust_region/outside_frac_{sign.replace(' ', '_')}", sign) for sign in _SIGNS),
            "The two add up to the share outside (`trust_region/outside_frac_positive_advantage`, "
            "`…_negative_advantage`). Tokens with a negative advantage are made less likely; far outside, they are "
            "what collapses a policy.",
            ticks="share",
        ),
        _share("diverging_frac", "Diverging tokens",
               "Tokens that their gradient pushes further away from μ, inside the boundary or not "
               "(`trust_region/diverging_frac`)."),
        _share("corrective_frac", "Corrected tokens",
               "Tokens with a weight below 0, whose gradient brings them back (`trust_region/corrective_frac`). A "
               "mask, as DPPO's and PPO's, never does."),
        _share("attenuated_frac", "Attenuated tokens",
               "Tokens with a weight between 0 and 1 (`trust_region/attenuated_frac`)."),
        Curves(
            "gradient_removed", "Gradient removed", "share of the gradient",
            (Line("trust_region/gradient_removed_frac"),),
            "What the weights take away of Σ abs(A) min(r, C) over the tokens (`trust_region/gradient_removed_frac`). "
            "Above 20 %, little is learned.", ticks="share",
        ),
        Curves(
            "delta", "Threshold δ", "δ, in the method's unit", (Line("trust_region/delta"),),
            "Where it moves from step to step (`trust_region/delta`).", log=True,
        ),
    ),
)  # fmt: skip

_DISTANCE = Section(
    "distance", "Distance of π from μ",
    "Over all tokens of a step and all its updates: engine mismatch and policy drift together.",
    (
        Curves(
            "abs_prob_diff", "Change in probability", "abs(π − μ)",
            (Line("mismatch/abs_prob_diff_mean", "mean"), Line("mismatch/abs_prob_diff_max", "largest")),
            "Of the sampled tokens (`mismatch/abs_prob_diff_mean`, `…_max`): the distance that DRPO and DPPO-TV bound.",
            log=True,
        ),
        Curves(
            "kl", "KL divergence", "nats per token", (Line("mismatch/kl"),),
            "KL(μ ‖ π), estimated by k3 = r − 1 − log r with r = π/μ (`mismatch/kl`).", log=True,
        ),
        Curves(
            "ratio_max", "Largest ratio", "π/μ", (Line("mismatch/ratio_max"),),
            "Of all sampled tokens (`mismatch/ratio_max`): what PPO's clipping looks at, and noisy where μ is small.",
            log=True,
        ),
        Curves(
            "low_prob_frac", "Unlikely tokens", "share of tokens", (Line("mismatch/low_prob_frac"),),
            "Sampled tokens with μ ≤ 0.01 (`mismatch/low_prob_frac`).", ticks="share",
        ),
        Curves(
            "partition_divergence", "Divergence over the Top-K tokens", "total variation, or KL in nats",
            (Line("mismatch/partition_divergence_mean", "mean"), Line("mismatch/partition_divergence_max", "largest")),
            "What Top-K methods bound (`mismatch/partition_divergence_mean`, `…_max`), in the method's own unit.",
            log=True,
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Pair:
    """A chart to be drawn of two series: metric names without the series' prefix, with their labels."""

    title: str
    unit: str
    metrics: dict[str, str]
    caption: str
    ticks: Format = ""
    log: bool = True


_PAIRS = (
    _Pair(
        "change in probability", "abs(π − μ)",
        {"abs_prob_diff_mean": "mean", "abs_prob_diff_p99": "99th percentile", "abs_prob_diff_max": "largest"},
        "Of the sampled tokens. The percentile is the upper edge of its histogram bin.",
    ),
    _Pair(
        "KL divergence", "nats per token", {"kl_k3": ""},
        "KL(μ ‖ π), estimated by k3 = r − 1 − log r with r = π/μ.",
    ),
    _Pair("χ² divergence", "mean of (π/μ − 1)²", {"chi2": ""}, "About the variance of the importance weights π/μ."),
    _Pair(
        "effective sample size", "share of the tokens", {"ess": ""},
        "(Σ r)²/(n Σ r²): 100 % is on-policy; below 90 %, a few tokens carry the gradient.",
        ticks="share", log=False,
    ),
    _Pair(
        "ratio", "π/μ", {"ratio_p99": "99th percentile", "ratio_p50": "median", "ratio_p01": "1st percentile"},
        "Of the sampled tokens. 1 is on-policy.",
    ),
    _Pair("correlation", "Pearson's r of π and μ", {"correlation": ""}, "Over the sampled tokens.", log=False),
    _Pair(
        "by the sign of the advantage", "mean abs(π − μ)",
        {f"abs_prob_diff_mean_{sign.replace(' ', '_')}": sign for sign in _SIGNS},
        "Over the tokens with such an advantage: those made likelier, and less likely.",
    ),
)  # fmt: skip


def _side_by_side(pair: _Pair) -> tuple[Curves, Curves]:
    """The mismatch of two engines, and what the updates since the rollout have added."""
    mismatch, drift = (
        Curves(
            key=f"{prefix}_{next(iter(pair.metrics))}",
            title=f"{series}: {pair.title}",
            unit=pair.unit,
            lines=tuple(Line(f"{prefix}/{name}", label) for name, label in pair.metrics.items()),
            caption=f"{pair.caption} {', '.join(f'`{prefix}/{name}`' for name in pair.metrics)}.",
            ticks=pair.ticks,
            log=pair.log,
            shared_axis=pair.title,
        )
        for prefix, series in (("inference_mismatch", "Mismatch"), ("policy_drift", "Drift"))
    )
    return mismatch, drift


_ENGINES = Section(
    "engines", "Engine mismatch and policy drift",
    "Mismatch: tokens of the first mini-batch after a rollout, where π has the weights that sampled, so that all "
    "distance is that of two engines. Drift: the later mini-batches, to which the updates since have added. The two of "
    "a pair have the same vertical axis.",
    tuple(chart for pair in _PAIRS for chart in _side_by_side(pair)),
)  # fmt: skip


def _bins(key: str, title: str, unit: str, metric: str, caption: str, **axis: Any) -> tuple[Bars, Bars]:
    """The bins of both series side by side; ``metric`` has a place for the bin's name."""
    mismatch, drift = (
        Bars(
            f"{prefix}_{key}", f"{series}: {title}", "probability μ of the token", unit,
            tuple((label, f"{prefix}_by_prob/{metric.format(name)}") for name, label in _BINS.items()),
            f"{caption} (`{prefix}_by_prob/{metric.format('…')}`).", **axis,
        )
        for prefix, series in (("inference_mismatch", "Mismatch"), ("policy_drift", "Drift"))
    )  # fmt: skip
    return mismatch, drift


_PROBABILITY = Section(
    "probability", "Distance by probability",
    "Which tokens the distance of π from μ is in, by the probability that they were sampled with.",
    (
        *_bins("bins_abs_prob_diff", "distance in each bin", "mean abs(π − μ)", "abs_prob_diff_{}",
               "Mean over the bin's tokens", log=True, shared_axis="bins"),
        *(
            chart
            for sign in _SIGNS
            for chart in _bins(
                f"bins_abs_prob_diff_{sign.partition(' ')[0]}", f"distance, {sign}", "mean abs(π − μ)",
                f"abs_prob_diff_{{}}_{sign.replace(' ', '_')}", f"Mean over the bin's tokens of {sign}",
                log=True, shared_axis="bins",
            )
        ),
        *_bins("bins_share", "tokens in each bin", "share of tokens", "share_{}", "Of the series' tokens",
               ticks="share"),
    ),
)  # fmt: skip

_TIME = Section(
    "time", "Time", "",
    (
        Curves(
            "step_seconds", "Time of a step", "seconds", (Line(STEP_SECONDS),),
            "From one step's start to the next (`timing_s/step`). The first one warms up.",
        ),
        Phases(
            "phases", "Where the time goes", "seconds per step",
            "Mean over the steps after the first (`timing_s/…`); a phase that a step does not have counts 0 s. Phases "
            "below 1 % of the step are left out, and some overlap.",
        ),
        Curves(
            "throughput", "Throughput", "tokens per second and device", (Line("perf/throughput"),),
            "Prompt and response tokens (`perf/throughput`).",
        ),
        Curves(
            "staleness", "Staleness of the samples", "weight versions",
            (Line(f"{_STALENESS}/mean", "mean"), Line(f"{_STALENESS}/max", "largest")),
            f"How many weight updates the policy is ahead of the weights that sampled (`{_STALENESS}/mean`, `…/max`).",
            unless_zero=True,
        ),
    ),
)  # fmt: skip

SECTIONS = (_LEARNING, _TRUST_REGION, _DISTANCE, _ENGINES, _PROBABILITY, _TIME)

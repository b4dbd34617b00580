"""The picture of a run, ``run.png``: what it learned, how far its policies were apart, what the trust region did."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drpo_verl.metrics import names
from drpo_verl.run_folder.steps import Step, held_out_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^v"
_X_OFFSET = 0.012
"""Between the intervals of two data sources, as a share of the picture's width, roughly."""

_MISMATCH, _DRIFT, _WEIGHT = "#6a3d9a", "#e0701a", "C2"


def draw(steps: Sequence[Step], path: Path, *, title: str, problems: Mapping[str, int] | None = None) -> None:
    """Draw reward, mismatch and drift, and gradient weights over the steps of a run, as a PNG.

    Args:
        steps: of the run.
        path: of the PNG.
        title: of the picture.
        problems: the number of held-out problems of each data source, for the interval of its accuracy.
    """
    import matplotlib

    matplotlib.use("Agg")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)  # it would say that it looks for fonts
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, (reward, distance, region) = plt.subplots(
        3, 1, figsize=(8, 9.5), sharex=True, layout="constrained", height_ratios=(3, 3, 2)
    )
    figure.suptitle(title)
    _draw_reward(reward, steps, problems or {})
    _draw_distance(distance, steps)
    _draw_region(region, steps)
    region.set_xlabel("training step")
    region.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (reward, distance, region):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _line(steps: Sequence[Step], name: str) -> tuple[list[int], list[float]]:
    """A metric at the steps that have a reward; NaN where it was not logged."""
    trained = [step for step in steps if names.REWARD in step.metrics]
    return [step.step for step in trained], [step.metrics.get(name, math.nan) for step in trained]


def _draw_reward(axes: Axes, steps: Sequence[Step], problems: Mapping[str, int]) -> None:
    axes.set_title("What the policy learns", loc="left", fontsize="medium")
    axes.plot(*_line(steps, names.REWARD), color="C0", label="training samples (mean of the step)")
    sources = sorted({source for step in steps for source in step.validation})
    for index, source in enumerate(sources):
        tried = [(step.step, step.validation[source]) for step in steps if source in step.validation]
        values = [value for _, value in tried]
        count = problems.get(source)
        ends = [held_out_interval(value, count) or (math.nan, math.nan) for value in values]
        # Beside each other, since intervals in one place hide each other.
        offset = index * _X_OFFSET * max(step.step for step in steps)
        axes.errorbar(
            [step + offset for step, _ in tried], values,
            [[v - low for v, (low, _) in zip(values, ends, strict=True)],
             [high - v for v, (_, high) in zip(values, ends, strict=True)]],
            fmt=_MARKERS[index % len(_MARKERS)], color=f"C{3 + index}", capsize=4,
            label=f"held-out accuracy{f' on {source}' if len(sources) > 1 else ''}{', 95 % interval' if count else ''}",
        )  # fmt: skip
    axes.set_ylabel("reward (share of right answers)")
    axes.set_ylim(0, 1)
    axes.legend(loc="lower right" if len(sources) < 2 else "upper left")  # several reach lower


def _draw_distance(axes: Axes, steps: Sequence[Step]) -> None:
    """Mismatch as an area from 0 on, and the drift that updates add as an area above it."""
    logged = {name for step in steps for name in step.metrics}
    at, mismatch = _line(steps, names.MISMATCH_MEAN)
    _, together = _line(steps, names.DRIFT_MEAN)
    axes.set_title("How far trainer (π) and rollout engine (μ) are apart", loc="left", fontsize="medium")
    if names.DRIFT_MEAN in logged:
        axes.fill_between(at, mismatch, together, color=_DRIFT, alpha=0.15, lw=0)
        axes.plot(at, together, color=_DRIFT, label="after updates: mismatch + drift of the policy")
    if names.DRIFT_FROM_ANCHOR_MEAN in logged:
        _, drift = _line(steps, names.DRIFT_FROM_ANCHOR_MEAN)
        axes.plot(at, drift, color=_DRIFT, ls=":", label=r"after updates: drift alone, $|\pi - \pi_\mathrm{old}|$")
    if names.MISMATCH_MEAN in logged:
        axes.fill_between(at, 0.0, mismatch, color=_MISMATCH, alpha=0.2, lw=0)
        axes.plot(at, mismatch, color=_MISMATCH, label="before any update: mismatch of the two engines")
    else:
        axes.plot(*_line(steps, names.ABS_PROB_DIFF_MEAN), color=_DRIFT, label="mismatch and drift, all updates")
    axes.set_ylabel("change in a sampled token's\nprobability, mean " + r"$|\pi - \mu|$")
    axes.margins(y=0.4)  # for the legend
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")


def _draw_region(axes: Axes, steps: Sequence[Step]) -> None:
    axes.set_title("What the trust region does about it", loc="left", fontsize="medium")
    axes.plot(*_line(steps, names.WEIGHT_MEAN), color=_WEIGHT, label="mean over tokens")
    axes.plot(*_line(steps, names.WEIGHT_MIN), color=_WEIGHT, alpha=0.5, ls="--", label="smallest")
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set_ylabel("gradient weight w\n(below 0: corrected)")
    axes.margins(y=0.25)
    axes.legend(loc="lower right", ncols=2)

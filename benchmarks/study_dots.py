"""Pictures of docs/study.md with a line for each method: how often a trust region acts, how far policies move."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.study_map import DRIFT, ENGINE, MISMATCHES, Method, Setting, StudyMap
from benchmarks.study_style import BLACK, LEAST, RED, SKY, method_label, pi_old
from drpo_verl.metrics import names

Mark = tuple[str, str, str, str]
"""A metric, and how its dots look: shape, colour, label."""

_TICKS = (LEAST, 1e-2, 1.0)
_SHARES = ("≤ 0.01 %", "1 %", "100 %")
_DISTANCES = ("≤ 10⁻⁴", "10⁻²", "1")


def draw_acting(study: StudyMap) -> Figure:
    """How often a trust region acts: shares of tokens outside and corrected, and of the gradient that is removed."""
    marks: list[Mark] = [
        (names.OUTSIDE, "o", BLACK, "tokens outside the boundary (diverging, beyond δ)"),
        (names.CORRECTED, "s", RED, "tokens corrected (w < 0)"),
        (f"{names.TRUST_REGION}/gradient_removed_frac", "D", SKY, "gradient removed (L1)"),
    ]
    return _dots(study, [marks], ["share over all steps, mean of the seeds"], slice(None), _SHARES)


def draw_distances(study: StudyMap) -> Figure:
    """How far pi is from mu at the end of the runs, before and after the updates, in probability and in KL."""
    parts = ((ENGINE, "o", SKY, "first mini-batch: π_old from μ, the engines alone"),
             (DRIFT, "s", RED, "later mini-batches: π from μ, the engines and the updates"))  # fmt: skip
    from_pi_old = (names.ANCHOR_ABS_PROB_DIFF_MEAN, "D", BLACK, "all mini-batches: π from π_old, where it is computed")
    probability = [*((f"{part}/abs_prob_diff_mean", *look) for part, *look in parts), from_pi_old]
    divergence = [(f"{part}/kl_k3", *look) for part, *look in parts]
    labels = ["mean difference of the probabilities, last 10 steps", "KL(μ ‖ π) in nats a token (k3), last 10 steps"]
    return _dots(study, [probability, divergence], labels, slice(-10, None), _DISTANCES)


def _dots(
    study: StudyMap, rows: Sequence[Sequence[Mark]], labels: Sequence[str], steps: slice, ticks: Sequence[str]
) -> Figure:
    """A column of panels for each setting, a row of them for each list of metrics, and in it a line for each method."""
    settings = [setting for setting in study.settings if study.made(setting)]
    made = {method.name for setting in settings for method, _ in study.made(setting)}
    methods = [method for method in study.methods.values() if method.name in made]
    size = (max(9.0, 3.2 + 1.75 * len(settings)), 1.5 + len(rows) * (0.8 + 0.27 * len(methods)))
    figure, grid = plt.subplots(
        len(rows), max(1, len(settings)), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for row, marks in enumerate(rows):
        for column, setting in enumerate(settings):
            _dots_of(grid[row][column], study, setting, methods, marks, steps)
            if row == 0:
                grid[row][column].set_title(f"{MISMATCHES[setting.mismatch]}\n{setting.staleness}", fontsize=10)
        grid[row][len(settings) // 2].set_xlabel(labels[row], fontsize=10.5)
    for axes in grid.flat:
        axes.set_xscale("log")
        axes.set_xlim(LEAST / 2, 2)
        axes.set_xticks(_TICKS, ticks, fontsize=8.5)
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.3)
    grid[0][0].set_yticks(range(len(methods)), [pi_old(method_label(method)) for method in methods], fontsize=9)
    grid[0][0].set_ylim(len(methods) - 0.4, -0.6)
    looks = {label: (marker, colour) for marks in rows for _, marker, colour, label in marks}
    handles = [Line2D([], [], ls="", marker=marker, color=colour, ms=7, label=pi_old(label))
               for label, (marker, colour) in looks.items()]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if len(settings) > 3 else 1, frameon=False)
    return figure


def _dots_of(
    axes: Axes, study: StudyMap, setting: Setting, methods: Sequence[Method], marks: Sequence[Mark], steps: slice
) -> None:
    for y, method in enumerate(methods):
        axes.axhline(y, color="0.93", lw=0.8, zorder=0)
        cell = study.cell(setting, method.name)
        if cell is None or not cell.finished:
            axes.plot([0.97], [y], marker="x", color="0.75", ms=4, transform=axes.get_yaxis_transform())
            continue
        for place, (metric, marker, colour, _) in enumerate(marks):
            values = [value for run in cell.finished if math.isfinite(value := run.mean(metric, steps))]
            if values:
                at = max(sum(values) / len(values), LEAST)
                axes.plot([at], [y + 0.16 * (place - (len(marks) - 1) / 2)], marker, color=colour, ms=6, alpha=0.9)

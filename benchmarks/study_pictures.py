"""The pictures of docs/study.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from benchmarks.study_dots import draw_acting, draw_distances
from benchmarks.study_map import (
    AROUND_MU,
    ASYNC,
    BASELINE,
    FROM_PI_OLD,
    MISMATCHES,
    Method,
    Setting,
    StudyMap,
    difference_of,
)
from benchmarks.study_style import BLACK, BLUE, GREEN, LEAST, ORANGE, PINK, RED, SKY, method_label, pi_old
from drpo_verl.metrics import names
from drpo_verl.study.cells import Cell

_OF_MISMATCH = {
    "fp32": (BLACK, "o"),
    "fp8": (GREEN, "v"),
    "fp8_kv": (SKY, "s"),
    "int4": (ORANGE, "D"),
    "int3": (RED, "^"),
}
_OF_METHOD = {
    BASELINE: (BLACK, "-"), "drpo_12.5": (SKY, "--"), "drpo_0.5": (ORANGE, "-."), "drpo_0.2": (RED, "-"),
    "drpo_0.1": (RED, ":"), "drpo_decoupled_0.2": (BLUE, "-"), "dppo_binary_tv": (GREEN, "-"),
    "grpo_clip_higher": (PINK, "--"),
}  # fmt: skip
"""The methods of the curves, and how they look."""

WINDOW = 5
"""Steps over which the curves are averaged."""
_REWARD = "mean reward of the last 10 steps"
_NO_REGION = 40.0
"""Where no trust region stands on the axis of delta."""


def _cell_text(cell: Cell) -> str:
    ends = difference_of(list(cell.ends.values()))
    if ends is None:
        return f"{cell.failed} failed"
    lines = [f"{ends.mean:.2f}"]
    if ends.interval:
        lines.append(f"±{ends.interval[1] - ends.mean:.2f}")
    lines.append(f"n = {len(ends.values)}")
    if cell.collapsed:
        lines.append(f"{cell.collapsed} collapsed")
    if cell.failed:
        lines.append(f"{cell.failed} failed")
    return "\n".join(lines)


def draw_map(study: StudyMap) -> Figure:
    """The mean reward at the end of every cell of the plan: a row for each setting, a column for each method."""
    methods = list(study.methods.values())
    rows = len(study.settings)
    figure, axes = plt.subplots(figsize=(2.6 + 0.86 * len(methods), 2.1 + 0.86 * rows), layout="constrained")
    colours = plt.get_cmap("cividis")
    most = max((max(cell.ends.values(), default=0.0) for cell in study.cells), default=0.0)
    scale = plt.Normalize(0, max(0.1, math.ceil(10 * most) / 10))
    for y, setting in enumerate(study.settings):
        for x, method in enumerate(methods):
            cell = study.cell(setting, method.name)
            if cell is None:
                continue
            box = {"xy": (x - 0.48, y - 0.47), "width": 0.96, "height": 0.94}
            if not cell.runs:
                axes.add_patch(Rectangle(**box, facecolor="white", edgecolor="0.75", hatch="////", lw=0.8))
                axes.text(x, y, "not run", ha="center", va="center", fontsize=8, bbox={"fc": "white", "ec": "none"})
                continue
            ends = difference_of(list(cell.ends.values()))
            colour = colours(scale(ends.mean)) if ends else (1.0, 1.0, 1.0, 1.0)
            axes.add_patch(Rectangle(**box, facecolor=colour, edgecolor=RED if cell.collapsed else "none", lw=2.5))
            light = np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.5
            axes.text(x, y, _cell_text(cell), ha="center", va="center", fontsize=8.5, linespacing=1.15,
                      color="black" if light else "white")  # fmt: skip
    axes.set_xlim(-0.55, len(methods) - 0.45)
    axes.set_ylim(rows - 0.45, -0.55)
    axes.set_xticks(range(len(methods)), [_column(method) for method in methods], fontsize=9)
    axes.set_yticks(range(rows), [_setting_label(study, setting) for setting in study.settings], fontsize=9.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _families(axes, methods)
    bar = figure.colorbar(plt.cm.ScalarMappable(scale, colours), ax=axes, pad=0.01, fraction=0.02)
    bar.set_label(_REWARD)
    axes.set_title(
        "Mean reward of the last 10 steps, ± half of its 95 % t interval over n seeds; framed: at least one run has "
        "collapsed; empty: not planned",
        fontsize=10.5, pad=30, loc="left",
    )  # fmt: skip
    return figure


def _column(method: Method) -> str:
    return method.label if method.delta is not None else method.label.replace(" ", "\n", 1)


def _setting_label(study: StudyMap, setting: Setting) -> str:
    measured = f"\n{_mismatch(study, setting)}" if study.made(setting) else ""
    return f"{MISMATCHES[setting.mismatch]}\n{setting.staleness}{measured}"


def _mismatch(study: StudyMap, setting: Setting) -> str:
    """The mismatch that a setting begins with, in words."""
    mismatch = study.engine_mismatch(setting)
    return f"mean abs(π − μ) {f'{mismatch:.2g}' if mismatch >= LEAST else '< 0.0001'}"


def _families(axes: Axes, methods: Sequence[Method]) -> None:
    """A line between the families of methods, and the name of each above its columns."""
    families = [method.family for method in methods]
    for family in dict.fromkeys(families):
        first, last = families.index(family), len(families) - 1 - families[::-1].index(family)
        if family != "none":
            axes.text((first + last) / 2, -0.62, pi_old(family), ha="center", va="bottom", fontsize=10.5,
                      fontweight="bold")  # fmt: skip
        if first:
            axes.axvline(first - 0.5, color="0.4", lw=1.2)


def draw_delta(study: StudyMap) -> Figure:
    """The reward at the end over delta: with each mismatch at 4 updates a rollout, and with each staleness."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.4), sharey=True, layout="constrained")
    at_four = [each for each in study.settings if each.updates == "u4" and not each.has_long_tail]  # one policy
    looks = {setting: _OF_MISMATCH[setting.mismatch] for setting in at_four}
    _over_delta(left, study, looks, lambda setting: MISMATCHES[setting.mismatch])
    left.set_title("Mismatch: what the rollout computes in, 4 updates a rollout")
    with_delta = {study.setting_of(cell) for cell in study.cells if study.methods[cell.choices["method"]].delta}
    stale = [setting for setting in study.settings if setting in with_delta
             and (setting.mismatch in ("fp32", "fp8") or setting.updates == ASYNC)]  # fmt: skip
    colours = dict(zip(stale, ((SKY, "o"), (BLACK, "s"), (RED, "^"), (GREEN, "D")), strict=True))
    _over_delta(right, study, colours, str)
    right.set_title("Staleness: updates a rollout")
    left.set_ylabel(_REWARD)
    left.set_ylim(bottom=0)
    return figure


def _over_delta(
    axes: Axes, study: StudyMap, looks: Mapping[Setting, tuple[str, str]], label: Callable[[Setting], str]
) -> None:
    """A line for each setting and anchor; a little beside each other, so that the intervals can be told apart."""
    shift = 1.0
    for setting, (colour, marker) in looks.items():
        for family, line, fill in ((AROUND_MU, "-", colour), (FROM_PI_OLD, "--", "white")):
            at, ends = [], []
            for method, cell in study.made(setting):
                if method.family == family and method.delta is not None:
                    at.append(method.delta)
                    ends.append(difference_of(list(cell.ends.values())))
            if family == AROUND_MU and (baseline := study.cell(setting, BASELINE)) and baseline.finished:
                at.append(_NO_REGION)
                ends.append(difference_of(list(baseline.ends.values())))
            order = np.argsort(at)
            points = [(shift * at[index], ends[index]) for index in order if ends[index] is not None]
            if not points:
                continue
            axes.plot([x for x, _ in points], [each.mean for _, each in points], line, color=colour, marker=marker,
                      mfc=fill, ms=7, lw=1.8, zorder=3)  # fmt: skip
            for x, each in points:
                low, high = each.interval or (each.mean, each.mean)
                axes.plot([x, x], [max(low, 0), high], color=colour, lw=1.1, alpha=0.7, zorder=2)
        shift *= 1.05
    axes.set_xscale("log")
    ticks = sorted({method.delta for method in study.methods.values() if method.delta is not None})
    axes.set_xticks([*ticks, _NO_REGION], [*(f"{each:g}" for each in ticks), "no trust\nregion"])
    axes.minorticks_off()
    axes.set_xlabel("δ of DRPO (the weight can turn negative only for δ < 1)")
    axes.set_xlim(0.8 * ticks[0], 1.6 * _NO_REGION)
    axes.axvspan(axes.get_xlim()[0], 1.0, color="0.95", zorder=0)
    if not any(map(study.made, looks)):
        axes.text(0.5, 0.5, "nothing run yet", transform=axes.transAxes, ha="center", color="0.4")
    axes.grid(axis="y", alpha=0.3)
    handles = [Line2D([], [], color=colour, marker=marker, ms=7, label=label(setting))
               for setting, (colour, marker) in looks.items() if study.made(setting)]  # fmt: skip
    handles += [
        Line2D([], [], color="0.4", ls="-", marker="o", label="distance from μ"),
        Line2D([], [], color="0.4", ls="--", marker="o", mfc="white", label=pi_old("distance from π_old")),
        Line2D([], [], color="0.4", lw=1.1, label="95 % t interval over seeds"),
    ]
    axes.legend(handles=handles, fontsize=9, frameon=False, loc="lower right")


def draw_binding(study: StudyMap) -> Figure:
    """The difference to no trust region over delta, in units of the mismatch before an update; 4 updates a rollout."""
    figure, axes = plt.subplots(figsize=(9.5, 5.2), layout="constrained")
    handles = []
    for setting in (each for each in study.settings if each.updates == "u4" and not each.has_long_tail):
        mismatch = study.engine_mismatch(setting)
        if not mismatch >= LEAST:  # nothing that delta could be beside; or not run
            continue
        colour, marker = _OF_MISMATCH[setting.mismatch]
        # A little beside each other, so that the intervals can be told apart.
        for family, line, fill, shift in ((AROUND_MU, "-", colour, 1.0), (FROM_PI_OLD, "--", "white", 1.05)):
            points = sorted(
                (shift * method.delta / mismatch, difference) for method, _ in study.made(setting)
                if method.family == family and method.delta is not None
                and (difference := study.difference(setting, method.name)) is not None
            )  # fmt: skip
            axes.plot([x for x, _ in points], [each.mean for _, each in points], line, color=colour, marker=marker,
                      mfc=fill, ms=8, lw=1.8, zorder=3)  # fmt: skip
            for x, each in points:
                if each.interval:
                    axes.plot([x, x], each.interval, color=colour, lw=1.1, alpha=0.6, zorder=2)
        label = f"{MISMATCHES[setting.mismatch]} ({_mismatch(study, setting)})"
        handles.append(Line2D([], [], color=colour, marker=marker, ms=7, label=label))
    handles += [
        Line2D([], [], color="0.4", ls="-", marker="o", label="distance from μ"),
        Line2D([], [], color="0.4", ls="--", marker="o", mfc="white", label=pi_old("distance from π_old")),
        Line2D([], [], color="0.4", lw=1.1, label="95 % t interval over seeds"),
    ]
    axes.axhline(0, color="black", lw=1)
    axes.set_xscale("log")
    axes.set_xticks([1, 3, 10, 30, 100, 300, 1000], ["1", "3", "10", "30", "100", "300", "1000"])
    axes.minorticks_off()
    axes.set_xlim(0.7, 2000)
    axes.set_ylim(-0.65, 0.3)
    axes.set_xlabel("δ of DRPO over the mean abs(π − μ) before an update")
    axes.set_ylabel("reward at the end minus that of no trust region")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(handles=handles, fontsize=9, frameon=False, loc="lower right")
    return figure


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over ``WINDOW`` steps, of the last axis."""
    return np.lib.stride_tricks.sliding_window_view(values, WINDOW, axis=-1).mean(-1)


def draw_curves(study: StudyMap) -> Figure:
    """The reward over the steps: a panel for each setting, for each method the mean and the band of its seeds."""
    figure, panels = _panels(study, "training step", "mean reward of a step's samples")
    shown: dict[str, str] = {}
    for setting, axes in panels.items():
        for method, cell in study.made(setting):
            if method.name not in _OF_METHOD:
                continue
            of_seeds = [run.metrics[names.REWARD] for run in cell.finished if names.REWARD in run.metrics]
            of_seeds = [each for each in of_seeds if len(each) == max(map(len, of_seeds)) >= WINDOW]
            if not of_seeds:
                continue
            colour, line = _OF_METHOD[method.name]
            curves = _smoothed(np.array(of_seeds))
            steps = np.arange(curves.shape[1]) + (WINDOW + 1) / 2
            axes.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.12, lw=0)
            axes.plot(steps, curves.mean(0), color=colour, ls=line, lw=1.9)
            shown[method.name] = method_label(method)
        axes.set_ylim(bottom=0)
    handles = [Line2D([], [], color=_OF_METHOD[name][0], ls=_OF_METHOD[name][1], lw=2, label=pi_old(shown[name]))
               for name in _OF_METHOD if name in shown]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=4 if len(panels) > 1 else 2, frameon=False,
                  title=f"mean of the seeds, averaged over {WINDOW} steps; band: smallest to largest seed")  # fmt: skip
    return figure


def _panels(study: StudyMap, x_label: str, y_label: str) -> tuple[Figure, dict[Setting, Axes]]:
    """A panel for each setting that has a finished run."""
    settings = [setting for setting in study.settings if study.made(setting)]
    columns = min(3, max(1, len(settings)))
    rows = max(1, math.ceil(len(settings) / columns))
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(8.5, 4.7 * columns), 1.2 + 3.6 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    panels = dict(zip(settings, grid.flat, strict=False))
    for axes in list(grid.flat)[len(settings) :]:
        axes.set_visible(False)
    for setting, axes in panels.items():
        axes.set_title(f"{setting}\n{_mismatch(study, setting)}", fontsize=10.5)
        axes.grid(alpha=0.3)
    figure.supxlabel(x_label, fontsize=10.5)
    figure.supylabel(y_label, fontsize=10.5)
    return figure, panels


PICTURES: Mapping[str, Callable[[StudyMap], Figure]] = {
    "map.png": draw_map,
    "binding.png": draw_binding,
    "delta.png": draw_delta,
    "curves.png": draw_curves,
    "acting.png": draw_acting,
    "distances.png": draw_distances,
}
"""The pictures by the names of their files."""


def draw(study: StudyMap, folder: Path) -> None:
    """Draw all pictures into a folder."""
    for name, picture in PICTURES.items():
        figure = picture(study)
        figure.savefig(folder / name, dpi=100)
        plt.close(figure)

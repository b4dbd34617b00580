"""The catalogue's panels drawn with plotly. Their text, lines and grid take their colours from the page's CSS."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from drpo_verl.metrics.bins import PROBABILITY_BINS
from drpo_verl.metrics.description import Metric, Panel, Section
from drpo_verl.metrics.names import STEP_SECONDS
from drpo_verl.report.axes import (
    HEIGHT,
    MOST_LINES,
    Range,
    bar,
    empty_figure,
    points,
    rounded,
    set_steps_axis,
    set_value_axis,
    shared_ranges,
)
from drpo_verl.report.ends import end_marks
from drpo_verl.report.groups import Group, Point, not_finite_steps
from drpo_verl.report.load import ReportRun, mean

# Legible on white and on near-black, and told apart by people who are colour-blind, with the shape beside them.
_COLOURS = ("#3d7ddb", "#e0701a", "#2a9d63", "#c2479b", "#8a6fd8", "#a8851c", "#d6454f", "#1f9bb3")
_SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down")
_DASHES = ("solid", "dash", "dot")
_HELD_OUT_DASHES = ("dot", "solid", "dash")

_EDGES = [f"{edge:g}" for edge in PROBABILITY_BINS.values()][:-1]
_BINS = (f"≤ {_EDGES[0]}", *(f"{low}–{high}" for low, high in itertools.pairwise(_EDGES)), f"> {_EDGES[-1]}")
_MOST_MARKERS = 12
_SMALLEST_PHASE = 0.01
SMOOTHED, BAND = "line", "band"
"""The ``meta`` of traces over steps, by which the page's script knows what to smooth."""


@dataclass(frozen=True)
class Style:
    """How a group looks in every chart."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Drawn:
    """A panel of which any group has a value.

    Attributes:
        panel: of the catalogue.
        metrics: those of the panel that are drawn.
        figure: the chart.
        groups: those that are in it.
        dashes: its kinds of lines when there are several: (dash, label).
    """

    panel: Panel
    metrics: Sequence[Metric]
    figure: go.Figure
    groups: Sequence[Group]
    dashes: Sequence[tuple[str, str]] = ()


Styles = Sequence[tuple[Group, Style]]


def style(index: int) -> Style:
    """Of the group at this place in the report; no two of the first 40 are the same."""
    return Style(_COLOURS[index % len(_COLOURS)], _SHAPES[index % len(_SHAPES)])


def draw_section(section: Section, groups: Sequence[Group]) -> list[Drawn]:
    """The charts of a section of the catalogue for which any of the report's groups has a value."""
    styles = [(group, style(index)) for index, group in enumerate(groups)]
    ranges = shared_ranges(section, groups)
    draw: dict[str, Callable[[Panel], Drawn]] = {
        "lines": lambda panel: _lines(panel, styles, ranges.get(panel.shared_axis)),
        "bins": lambda panel: _bins(panel, styles, ranges.get(panel.shared_axis)),
        "held_out": lambda panel: _held_out(panel, styles),
        "phases": lambda panel: _phases(panel, styles),
    }
    drawn = [draw[panel.kind](panel) for panel in section.charts]
    return [each for each in drawn if each.figure.data]


def _lines(panel: Panel, styles: Styles, axis_range: Range | None) -> Drawn:
    shown = [metric for metric in panel.metrics[:MOST_LINES] if _has_values(panel, metric, styles)]
    dashes = dict(zip(shown, _DASHES, strict=False))
    figure, present, longest = empty_figure(), [], 0
    for group, look in styles:
        lines = {metric: line for metric in shown if (line := points(group, metric, panel.log))}
        if len(group.runs) > 1:
            figure.add_traces([_band(group, look, line, panel.log) for line in lines.values()])
        for metric, line in lines.items():
            gaps = not_finite_steps(group, metric.name)
            figure.add_trace(_line(group, look, line, dashes[metric], metric.label, panel.is_share, gaps))
            longest = max(longest, line[-1].step)
        if lines:
            present.append(group)
            figure.add_traces(end_marks(group, look.colour, shown[0], panel.log))
    set_steps_axis(figure, longest)
    set_value_axis(figure, panel, axis_range)
    if panel.reference is not None:
        figure.add_hline(y=panel.reference, line={"width": 1, "color": "#8a8f98"}, layer="below")
    labels = [(dash, metric.label) for metric, dash in dashes.items()] if len(panel.metrics) > 1 else []
    return Drawn(panel, shown, figure, present, labels)


def _has_values(panel: Panel, metric: Metric, styles: Styles) -> bool:
    values = [point.high for group, _ in styles for point in points(group, metric, panel.log)]
    return any(values) if panel.unless_zero else bool(values)


def _line(
    group: Group, look: Style, line: Sequence[Point], dash: str, label: str, share: bool, gaps: Sequence[int]
) -> go.Scatter:
    number = "%{y:.3~%}" if share else "%{y:.4~g}"
    name = f"{group.label}, {label}" if label else group.label
    of = f"<br>mean of %{{customdata}} of {len(group.runs)} runs" if len(group.runs) > 1 else ""
    known = {point.step: point for point in line}
    steps = sorted({*known, *gaps})
    return go.Scatter(
        x=steps,
        y=[rounded(known[step].mean) if step in known else None for step in steps],
        customdata=[known[step].count if step in known else 0 for step in steps] if of else None,
        mode="lines+markers",
        meta=SMOOTHED,
        name=name,
        legendgroup=group.label,
        line={"color": look.colour, "width": 2, "dash": dash},
        marker={"symbol": look.shape, "size": 6, "maxdisplayed": _MOST_MARKERS},
        hovertemplate=f"{name}<br>step %{{x}}: {number}{of}<extra></extra>",
    )


def _band(group: Group, look: Style, line: Sequence[Point], log: bool) -> go.Scatter:
    floor = min((point.low for point in line if point.low > 0), default=min(point.mean for point in line))
    lows = [max(point.low, floor) if log else point.low for point in line]
    steps = [point.step for point in line]
    return go.Scatter(
        x=steps + steps[::-1],
        y=[rounded(value) for value in [point.high for point in line] + lows[::-1]],
        mode="lines",
        line={"width": 0, "color": look.colour},
        fill="toself",
        fillcolor=f"rgba{(*hex_to_rgb(look.colour), 0.18)}",
        hoverinfo="skip",
        legendgroup=group.label,
        meta=BAND,
        name=f"{group.label}, range",
    )


def _held_out(panel: Panel, styles: Styles) -> Drawn:
    measured = [(group, look, [each for run in group.runs for each in run.accuracies]) for group, look in styles]
    sources = sorted({accuracy.source for _, _, accuracies in measured for accuracy in accuracies})
    dashes = {source: _HELD_OUT_DASHES[index % len(_HELD_OUT_DASHES)] for index, source in enumerate(sources)}
    figure, longest = empty_figure(), 0
    for (group, look, accuracies), source in itertools.product(measured, sources):
        steps = sorted({accuracy.step for accuracy in accuracies if accuracy.source == source})
        if not steps:
            continue
        at = [[each for each in accuracies if (each.step, each.source) == (step, source)] for step in steps]
        name = f"{group.label}, {source}" if len(sources) > 1 else group.label
        centres = [math.fsum(each.value for each in values) / len(values) for values in at]
        ends = [
            (values[0].interval or (centre, centre)) if len(group.runs) == 1
            else (min(each.value for each in values), max(each.value for each in values))
            for values, centre in zip(at, centres, strict=True)
        ]  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=centres,
                error_y={"thickness": 1.5, "width": 4, **_whiskers(centres, ends)},
                customdata=ends,
                mode="lines+markers",
                name=name,
                legendgroup=group.label,
                line={"color": look.colour, "width": 2, "dash": dashes[source]},
                marker={"symbol": look.shape, "size": 8},
                hovertemplate=f"{name}<br>step %{{x}}: %{{y:.3f}} (%{{customdata[0]:.3f}} to "
                "%{customdata[1]:.3f})<extra></extra>",
            )
        )
        longest = max(longest, steps[-1])
    set_steps_axis(figure, longest)
    figure.update_yaxes(title_text=panel.unit, tickformat="~%")
    present = [group for group, _, accuracies in measured if accuracies]
    labels = [(dashes[source], source) for source in sources] if len(sources) > 1 else []
    return Drawn(panel, panel.metrics, figure, present, labels)


def _whiskers(centres: Sequence[float], ends: Sequence[tuple[float, float]]) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - centre for (_, high), centre in zip(ends, centres, strict=True)],
        "arrayminus": [centre - low for (low, _), centre in zip(ends, centres, strict=True)],
    }


def _bins(panel: Panel, styles: Styles, axis_range: Range | None) -> Drawn:
    label = dict(zip(panel.metrics[0].by_bin.values(), _BINS, strict=True))
    figure, present = _bar_figure(styles, label, lambda run, name: bar(run, name, panel.log), share=panel.is_share)
    whole = {"categoryarray": _BINS, "range": [-0.5, len(_BINS) - 0.5]}  # those without a value, too
    figure.update_xaxes(title_text="probability μ of the token", type="category", tickangle=-40, **whole)
    set_value_axis(figure, panel, axis_range)
    return Drawn(panel, panel.metrics, figure, present)


def _phases(panel: Panel, styles: Styles) -> Drawn:
    prefix = panel.metrics[0].name.partition("<")[0]
    runs = [run for group, _ in styles for run in group.runs]
    names = {name for run in runs for step in run.steps for name in step.metrics if name.startswith(prefix)}
    largest = {name: max((_phase_seconds(run, name) or 0.0 for run in runs), default=0.0) for name in names}
    least = _SMALLEST_PHASE * largest.pop(STEP_SECONDS, 0.0)
    shown = sorted((name for name in largest if largest[name] > least), key=lambda name: -largest[name])
    label = {name: name.removeprefix(prefix) for name in shown}
    figure, present = _bar_figure(styles, label, _phase_seconds, horizontal=True)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text=panel.unit, rangemode="tozero")
    figure.update_layout(height=max(HEIGHT, 90 + 12 * len(shown) * (len(present) + 1)))
    return Drawn(panel, panel.metrics, figure, present)


def _phase_seconds(run: ReportRun, name: str) -> float | None:
    steps = list(run.values(STEP_SECONDS))
    values = run.values(name)
    if not values:
        return None
    return mean(values.get(step, 0.0) for step in (steps[1:] or steps))


def _bar_figure(
    styles: Styles,
    label: dict[str, str],
    value: Callable[[ReportRun, str], float | None],
    *,
    horizontal: bool = False,
    share: bool = False,
) -> tuple[go.Figure, list[Group]]:
    """One bar a category and group: the mean over its runs, with a whisker from the smallest to the largest."""
    figure, present = empty_figure(), []
    number, ordinate, abscissa = (".3~%" if share else ".4~g"), *(("x", "y") if horizontal else ("y", "x"))
    for group, look in styles:
        by_category = {
            label[category]: [v for run in group.runs if (v := value(run, category)) is not None] for category in label
        }
        by_category = {category: values for category, values in by_category.items() if values}
        if not by_category:
            continue
        centres = [math.fsum(values) / len(values) for values in by_category.values()]
        ends = [(min(values), max(values)) for values in by_category.values()]
        whiskers = {"thickness": 1.2, "width": 2, "color": "#8a8f98", **_whiskers(centres, ends)}
        figure.add_trace(
            go.Bar(
                {abscissa: list(by_category), ordinate: [rounded(centre) for centre in centres]},
                orientation="h" if horizontal else "v",
                name=group.label,
                legendgroup=group.label,
                marker={"color": look.colour, "line": {"width": 0}},
                hovertemplate=f"{group.label}<br>%{{{abscissa}}}: %{{{ordinate}:{number}}}<extra></extra>",
                **({f"error_{ordinate}": whiskers} if len(group.runs) > 1 else {}),
            )
        )
        present.append(group)
    figure.update_layout(barmode="group", bargap=0.25)
    return figure, present

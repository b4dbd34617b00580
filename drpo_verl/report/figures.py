"""The charts of ``catalogue``, drawn with plotly. Their text, lines and grid take their colours from the page's CSS."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from drpo_verl.report.catalogue import (
    PHASE_PREFIX,
    STEP_SECONDS,
    Bars,
    Chart,
    Curves,
    Format,
    HeldOut,
    Line,
    Phases,
    Section,
)
from drpo_verl.report.groups import Group, Point, curve
from drpo_verl.report.load import ReportRun, mean

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", Arial, sans-serif'

# Legible on white and on near-black, and told apart by people who are colour-blind, with the shape beside them.
_COLOURS = ("#3d7ddb", "#e0701a", "#2a9d63", "#c2479b", "#8a6fd8", "#a8851c", "#d6454f", "#1f9bb3")
_SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down")
DASHES = ("solid", "dash", "dot")
_HELD_OUT_DASHES = ("dot", "solid", "dash")

_MOST_MARKERS = 12
_HEIGHT = 320
_SMALLEST_PHASE = 0.01
_FEWEST_TICKS = 4
_MOST_DECADES = 6

_TICKS: dict[Format, dict[str, Any]] = {
    "": {"exponentformat": "power"},
    "share": {"tickformat": "~%"},
}
_DIGITS = 5


@dataclass(frozen=True)
class Style:
    """How a group looks in every chart."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Drawn:
    """A figure, the groups that are in it, and its kinds of lines when there are several: (dash, label)."""

    chart: Chart
    figure: go.Figure
    groups: Sequence[Group]
    dashes: Sequence[tuple[str, str]]


def style(index: int) -> Style:
    """Of the group at this place in the report; no two of the first 40 are the same."""
    return Style(_COLOURS[index % len(_COLOURS)], _SHAPES[index % len(_SHAPES)])


def draw_section(section: Section, groups: Sequence[Group]) -> list[Drawn]:
    """The section's charts for which any group has a value.

    Args:
        section: of the catalogue.
        groups: all of the report.
    """
    styles = [(group, style(index)) for index, group in enumerate(groups)]
    ranges = _shared_ranges(section, groups)
    drawn = []
    for chart in section.charts:
        if isinstance(chart, Curves):
            found = _curves(chart, styles, ranges.get(chart.shared_axis))
        elif isinstance(chart, HeldOut):
            found = _held_out(chart, styles)
        elif isinstance(chart, Bars):
            found = _bars(chart, styles, ranges.get(chart.shared_axis))
        else:
            found = _phases(chart, styles)
        if found.figure.data:
            drawn.append(found)
    return drawn


Styles = Sequence[tuple[Group, Style]]


def _points(group: Group, line: Line, log: bool) -> list[Point]:
    """A line of a group; a logarithmic axis has no place for 0 and below."""
    return [point for point in curve(group, line.metric, scale=line.scale) if point.mean > 0 or not log]


def _curves(chart: Curves, styles: Styles, axis_range: tuple[float, float] | None) -> Drawn:
    lines = [line for line in chart.lines if _has_values(chart, line, styles)]
    figure, present, longest = _figure(), [], 0
    for group, look in styles:
        found = [(line, dash, _points(group, line, chart.log)) for line, dash in zip(lines, DASHES, strict=False)]
        for _, _, points in found:
            if len(group.runs) > 1 and points:
                figure.add_trace(_band(group, look, points, chart.log))
        for line, dash, points in found:
            if points:
                figure.add_trace(_line(group, look, points, dash, line.label, share=chart.ticks == "share"))
                longest = max(longest, points[-1].step)
        if any(points for _, _, points in found):
            present.append(group)
    _steps_axis(figure, longest)
    _value_axis(figure, chart, axis_range)
    if chart.reference is not None:
        figure.add_hline(y=chart.reference, line={"width": 1, "color": "#8a8f98"}, layer="below")
    dashes = [(dash, line.label) for line, dash in zip(lines, DASHES, strict=False)] if len(chart.lines) > 1 else []
    return Drawn(chart, figure, present, dashes)


def _has_values(chart: Curves, line: Line, styles: Styles) -> bool:
    points = [point for group, _ in styles for point in _points(group, line, chart.log)]
    return any(point.high for point in points) if chart.unless_zero else bool(points)


def _line(group: Group, look: Style, points: Sequence[Point], dash: str, label: str, *, share: bool) -> go.Scatter:
    number = "%{y:.3~%}" if share else "%{y:.4~g}"
    name = f"{group.label}, {label}" if label else group.label
    of = f"<br>mean of %{{customdata}} of {len(group.runs)} runs" if len(group.runs) > 1 else ""
    return go.Scatter(
        x=[point.step for point in points],
        y=[_rounded(point.mean) for point in points],
        customdata=[point.count for point in points] if of else None,
        mode="lines+markers",
        name=name,
        legendgroup=group.label,
        line={"color": look.colour, "width": 2, "dash": dash},
        marker={"symbol": look.shape, "size": 6, "maxdisplayed": _MOST_MARKERS},
        hovertemplate=f"{name}<br>step %{{x}}: {number}{of}<extra></extra>",
    )


def _band(group: Group, look: Style, points: Sequence[Point], log: bool) -> go.Scatter:
    floor = min((point.low for point in points if point.low > 0), default=min(point.mean for point in points))
    lows = [max(point.low, floor) if log else point.low for point in points]
    steps = [point.step for point in points]
    return go.Scatter(
        x=steps + steps[::-1],
        y=[_rounded(value) for value in [point.high for point in points] + lows[::-1]],
        mode="lines",
        line={"width": 0, "color": look.colour},
        fill="toself",
        fillcolor=_translucent(look.colour),
        hoverinfo="skip",
        legendgroup=group.label,
        name=f"{group.label}, range",
    )


def _held_out(chart: HeldOut, styles: Styles) -> Drawn:
    found = [(group, look, [each for run in group.runs for each in run.accuracies]) for group, look in styles]
    sources = sorted({accuracy.source for _, _, every in found for accuracy in every})
    dashes = {source: _HELD_OUT_DASHES[index % len(_HELD_OUT_DASHES)] for index, source in enumerate(sources)}
    figure, longest = _figure(), 0
    for (group, look, every), source in itertools.product(found, sources):
        steps = sorted({accuracy.step for accuracy in every if accuracy.source == source})
        if not steps:
            continue
        at = [[each for each in every if (each.step, each.source) == (step, source)] for step in steps]
        name = f"{group.label}, {source}" if len(sources) > 1 else group.label
        centres = [math.fsum(one.value for one in some) / len(some) for some in at]
        ends = [
            (some[0].interval or (centre, centre)) if len(group.runs) == 1
            else (min(one.value for one in some), max(one.value for one in some))
            for some, centre in zip(at, centres, strict=True)
        ]  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=centres,
                error_y={
                    "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
                    "array": [high - centre for (_, high), centre in zip(ends, centres, strict=True)],
                    "arrayminus": [centre - low for (low, _), centre in zip(ends, centres, strict=True)],
                },
                customdata=ends,
                mode="lines+markers",
                name=name,
                legendgroup=group.label,
                line={"color": look.colour, "width": 2, "dash": dashes[source]},
                marker={"symbol": look.shape, "size": 8},
                hovertemplate=f"{name}<br>step %{{x}}: %{{y:.3f}} (%{{customdata[0]:.3f}} to "
                "%{customdata[1]:.3f})<extra></extra>",
            )
        )  # fmt: skip
        longest = max(longest, steps[-1])
    _steps_axis(figure, longest)
    figure.update_yaxes(title_text=chart.unit, tickformat="~%")
    present = [group for group, _, every in found if every]
    return Drawn(chart, figure, present, [(dashes[source], source) for source in sources] if len(sources) > 1 else [])


def _bar(run: ReportRun, metric: str, log: bool) -> float | None:
    """A bar's value; a logarithmic axis has no place for 0 and below."""
    found = run.last(metric)
    return None if found is not None and log and found <= 0 else found


def _bars(chart: Bars, styles: Styles, axis_range: tuple[float, float] | None) -> Drawn:
    labels = dict(chart.categories)

    def value(run: ReportRun, category: str) -> float | None:
        return _bar(run, labels[category], chart.log)

    figure, present = _bar_figure(chart, styles, list(labels), value, horizontal=False, share=chart.ticks == "share")
    every = {"categoryarray": list(labels), "range": [-0.5, len(labels) - 0.5]}  # those without a value, too
    figure.update_xaxes(title_text=chart.axis, type="category", tickangle=-40, **every)
    _value_axis(figure, chart, axis_range)
    return Drawn(chart, figure, present, [])


def _phases(chart: Phases, styles: Styles) -> Drawn:
    runs = [run for group, _ in styles for run in group.runs]
    names = {name for run in runs for step in run.steps for name in step.metrics if name.startswith(PHASE_PREFIX)}
    names -= {STEP_SECONDS}
    largest = {name: max((_phase_seconds(run, name) or 0.0 for run in runs), default=0.0) for name in names}
    least = _SMALLEST_PHASE * max((_phase_seconds(run, STEP_SECONDS) or 0.0 for run in runs), default=0.0)
    kept = sorted((name for name in names if largest[name] > least), key=lambda name: -largest[name])
    figure, present = _bar_figure(
        chart, styles, [name.removeprefix(PHASE_PREFIX) for name in kept],
        lambda run, phase: _phase_seconds(run, PHASE_PREFIX + phase), horizontal=True, share=False,
    )  # fmt: skip
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text=chart.unit, rangemode="tozero")
    figure.update_layout(height=max(_HEIGHT, 90 + 12 * len(kept) * (len(present) + 1)))
    return Drawn(chart, figure, present, [])


def _phase_seconds(run: ReportRun, name: str) -> float | None:
    steps = list(run.values(STEP_SECONDS))
    values = run.values(name)
    if not values:
        return None
    return mean(values.get(step, 0.0) for step in (steps[1:] or steps))


def _bar_figure(
    chart: Bars | Phases,
    styles: Styles,
    categories: Sequence[str],
    value: Callable[[ReportRun, str], float | None],
    *,
    horizontal: bool,
    share: bool,
) -> tuple[go.Figure, list[Group]]:
    """One bar a category and group: the mean over its runs, with a whisker from the smallest to the largest."""
    figure, present = _figure(), []
    number, ordinate, abscissa = (".3~%" if share else ".4~g"), *(("x", "y") if horizontal else ("y", "x"))
    for group, look in styles:
        every = {
            category: [v for run in group.runs if (v := value(run, category)) is not None] for category in categories
        }
        every = {category: values for category, values in every.items() if values}
        if not every:
            continue
        centres = [math.fsum(values) / len(values) for values in every.values()]
        whiskers = {
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 2, "color": "#8a8f98",
            "array": [max(values) - centre for values, centre in zip(every.values(), centres, strict=True)],
            "arrayminus": [centre - min(values) for values, centre in zip(every.values(), centres, strict=True)],
        }  # fmt: skip
        figure.add_trace(
            go.Bar(
                {abscissa: list(every), ordinate: [_rounded(centre) for centre in centres]},
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


def _figure() -> go.Figure:
    axis = {"automargin": True, "zeroline": False, "gridcolor": "#8884", "linecolor": "#8888", "showline": True,
            "title_standoff": 10}  # fmt: skip
    return go.Figure(
        layout={
            "template": "none", "height": _HEIGHT, "margin": {"l": 56, "r": 14, "t": 12, "b": 44},
            "font": {"family": FONT, "size": 12}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
            "showlegend": False, "hovermode": "closest",
            "xaxis": axis, "yaxis": axis,
        },
    )  # fmt: skip


def _steps_axis(figure: go.Figure, longest: int) -> None:
    figure.update_xaxes(title_text="training step", **({"dtick": 1} if longest <= 10 else {"tickformat": "d"}))


def _value_axis(figure: go.Figure, chart: Curves | Bars, axis_range: tuple[float, float] | None) -> None:
    figure.update_yaxes(title_text=chart.unit, **_TICKS[chart.ticks])
    values = [value for trace in figure.data for value in trace.y]
    if not values:
        return
    if axis_range is not None:
        figure.update_yaxes(range=[math.log10(end) for end in axis_range] if chart.log else list(axis_range))
    if not chart.log:
        figure.update_yaxes(rangemode="nonnegative" if min(values) >= 0 else "normal")
        return
    ticks = _log_ticks(*(axis_range or _padded(values, log=True)))
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, about six. Left to itself, plotly writes them over each other, or digits alone."""
    decades = math.log10(high / low)
    if decades < 1:
        step = 10 ** math.floor(math.log10(high - low))
        step *= next(part for part in (1.0, 0.5, 0.2, 0.1) if (high - low) / (part * step) >= _FEWEST_TICKS)
        return [_rounded(step * i) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    parts = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    every = math.ceil(decades / _MOST_DECADES)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = (float(f"{part}e{power}") for power in powers if power % every == 0 for part in parts)
    return [tick for tick in ticks if low <= tick <= high]


def _shared_ranges(section: Section, groups: Sequence[Group]) -> dict[str | None, tuple[float, float]]:
    """The range of each shared vertical axis, with a margin."""
    ends: dict[str, list[float]] = {}
    logs: dict[str, bool] = {}
    for chart in section.charts:
        if not isinstance(chart, Curves | Bars) or chart.shared_axis is None:
            continue
        values = ends.setdefault(chart.shared_axis, [])
        logs[chart.shared_axis] = chart.log
        for group in groups:
            if isinstance(chart, Curves):
                for line in chart.lines:
                    values += _ends(_points(group, line, chart.log), chart.log)
            else:
                bars = (_bar(run, metric, chart.log) for run in group.runs for _, metric in chart.categories)
                values += [bar for bar in bars if bar is not None]
    return {name: _padded(values, logs[name]) for name, values in ends.items() if values}


def _ends(points: Iterable[Point], log: bool) -> list[float]:
    return [end for point in points for end in (point.low, point.high) if end > 0 or not log]


def _padded(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        margin = (high / low) ** 0.06 * 1.02
        return low / margin, high * margin
    margin = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - margin, high + margin


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"

"""The axes of a report's charts: ranges, ticks and numbers as they are written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from drpo_verl.metrics.description import Metric, Panel, Section
from drpo_verl.report.groups import Group, Point, curve
from drpo_verl.report.load import ReportRun

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", Arial, sans-serif'
HEIGHT = 320
"""Of a chart, in CSS pixels."""

MOST_LINES = 3
"""Of a panel's metrics, so many are drawn."""

_FEWEST_TICKS = 4
_MOST_DECADES = 6
_DIGITS = 5

Range = tuple[float, float]


def points(group: Group, metric: Metric, log: bool) -> list[Point]:
    """A metric over the steps of a group, without what a logarithmic axis has no place for: 0 and below."""
    return [point for point in curve(group, metric.name, scale=metric.factor) if point.mean > 0 or not log]


def bar(run: ReportRun, metric: str, log: bool) -> float | None:
    """A metric at a run's end; None when there is none, or a logarithmic axis has no place for it."""
    value = run.last(metric)
    return None if value is not None and log and value <= 0 else value


def shared_ranges(section: Section, groups: Sequence[Group]) -> dict[str, Range]:
    """The range of each axis of values that panels of a section share, with a margin."""
    ends: dict[str, list[float]] = {}
    logarithmic: dict[str, bool] = {}
    for panel, group in itertools.product(section.charts, groups):
        values = ends.setdefault(panel.shared_axis, [])
        logarithmic[panel.shared_axis] = panel.log
        if panel.kind == "bins":
            bars = (bar(run, name, panel.log) for run in group.runs for name in panel.metrics[0].by_bin.values())
            values += [value for value in bars if value is not None]
        else:
            for metric in panel.metrics[:MOST_LINES]:
                line = points(group, metric, panel.log)
                values += [end for point in line for end in (point.low, point.high) if end > 0 or not panel.log]
    return {axis: _padded(values, logarithmic[axis]) for axis, values in ends.items() if axis and values}


def empty_figure() -> go.Figure:
    """A figure without a title and a legend, which the page has."""
    axis = {"automargin": True, "zeroline": False, "gridcolor": "#8884", "linecolor": "#8888", "showline": True,
            "title_standoff": 10}  # fmt: skip
    return go.Figure(
        layout={
            "template": "none", "height": HEIGHT, "margin": {"l": 56, "r": 14, "t": 12, "b": 44},
            "font": {"family": FONT, "size": 12}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
            "showlegend": False, "hovermode": "closest",
            "xaxis": axis, "yaxis": axis,
        },
    )  # fmt: skip


def set_steps_axis(figure: go.Figure, longest: int) -> None:
    """Title and ticks of a horizontal axis of training steps, of which ``longest`` is the last."""
    figure.update_xaxes(title_text="training step", **({"dtick": 1} if longest <= 10 else {"tickformat": "d"}))


def set_value_axis(figure: go.Figure, panel: Panel, axis_range: Range | None) -> None:
    """Title, range and ticks of a vertical axis; without a range that it shares with others, that of the traces."""
    ticks_as: dict[str, Any] = {"tickformat": "~%"} if panel.is_share else {"exponentformat": "power"}
    figure.update_yaxes(title_text=panel.unit, **ticks_as)
    values = [value for trace in figure.data for value in trace.y if value is not None]
    if not values:
        return
    if axis_range is not None:
        figure.update_yaxes(range=[math.log10(end) for end in axis_range] if panel.log else list(axis_range))
    if not panel.log:
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
        return [rounded(step * i) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    parts = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    stride = math.ceil(decades / _MOST_DECADES)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = (float(f"{part}e{power}") for power in powers if power % stride == 0 for part in parts)
    return [tick for tick in ticks if low <= tick <= high]


def _padded(values: Sequence[float], log: bool) -> Range:
    low, high = min(values), max(values)
    if log:
        margin = (high / low) ** 0.06 * 1.02
        return low / margin, high * margin
    margin = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - margin, high + margin


def rounded(value: float) -> float:
    """A value to as many digits as a chart shows."""
    return float(f"{value:.{_DIGITS}g}")

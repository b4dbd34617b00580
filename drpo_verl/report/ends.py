"""Marks where runs ended early, and what is said of it."""

from __future__ import annotations

import plotly.graph_objects as go

from drpo_verl.metrics.description import Metric
from drpo_verl.report.axes import rounded
from drpo_verl.report.groups import Group
from drpo_verl.report.load import ReportRun

_LONGEST_REASON = 110


def end_marks(group: Group, colour: str, metric: Metric, log: bool) -> list[go.Scatter]:
    """A mark at the last value of each run of a group that ended early; no trace without such a run."""
    ends = [
        (run, *last) for run in group.runs
        if run.ended and (last := max(run.values(metric.name).items(), default=None)) and (last[1] > 0 or not log)
    ]  # fmt: skip
    if not ends:
        return []
    return [
        go.Scatter(
            x=[step for _, step, _ in ends],
            y=[rounded(metric.factor * value) for _, _, value in ends],
            customdata=[_in_a_line(run) for run, _, _ in ends],
            mode="markers",
            name=f"{group.label}, ended early",
            legendgroup=group.label,
            marker={"symbol": "x", "size": 10, "color": colour, "line": {"width": 1, "color": "#8a8f98"}},
            hovertemplate="%{customdata}<extra></extra>",
        )
    ]


def steps_of(run: ReportRun) -> str:
    """How many steps a run has made, and of how many where it was to make more."""
    ended = run.ended
    return f"{run.trained_steps} of {ended.of}" if ended and ended.of is not None else str(run.trained_steps)


def why_ended(run: ReportRun) -> str:
    """Why a run ended early, as far as it is known."""
    return (run.ended.why if run.ended else "") or "not known: it has no summary that says why, or is still going on"


def _in_a_line(run: ReportRun) -> str:
    why = why_ended(run)
    short = why if len(why) <= _LONGEST_REASON else f"{why[:_LONGEST_REASON]}…"
    return f"{run.name}: ended early, after step {steps_of(run)}<br>{short}"

"""The report's HTML page: tables, and the charts with plotly.js in the page itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from drpo_verl import __version__
from drpo_verl.metrics import names
from drpo_verl.metrics.catalogue import SECTIONS
from drpo_verl.metrics.description import Section
from drpo_verl.report.axes import FONT
from drpo_verl.report.ends import steps_of, why_ended
from drpo_verl.report.figures import Drawn, draw_section, style
from drpo_verl.report.groups import (
    METHOD,
    Difference,
    Group,
    config_differences,
    group_runs,
    name_runs,
    settings_by_value,
)
from drpo_verl.report.load import LAST_STEPS, Accuracy, ReportRun, load_runs, mean
from drpo_verl.report.pairs import MOST_BASELINES, PairedDifference, compare
from drpo_verl.run_folder.worst_tokens import WorstToken

_NOTHING = "–"
_WORST_TOKENS = 5
_CONTEXT_CHARACTERS = 60
_MOST_NOT_FINITE = 12
_FEWEST_TO_SMOOTH = 12
_SMOOTHED_PART = 20
_HOW_DRAWN = {
    "lines": "",
    "bins": f"Mean of the last {LAST_STEPS} steps.",
    "held_out": "Bars: for one run its 95 % Wilson interval over the problems, where their number is known; for "
    "several, the least and the most accurate.",
    "phases": "Mean over the steps after the first; a phase that a step does not have counts 0 s. Phases below 1 % of "
    "the step are left out.",
}

Comparison = tuple[Group, list[tuple[Group, dict[str, PairedDifference]]]]


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    group_by: str = METHOD,
    left_out: Callable[[str], None] = lambda reason: None,
) -> int:
    """Write the report of some runs.

    Args:
        paths: of run folders or metrics files.
        out: the HTML file.
        group_by: see ``group_runs``.
        left_out: see ``load_runs``.

    Returns:
        How many runs are in it.

    Raises:
        FileNotFoundError: see ``load_runs``.
        ValueError: likewise, or when nothing can be grouped so.
    """
    runs = load_runs(paths, left_out)
    groups = group_runs(runs, group_by)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_render(runs, groups, group_by), encoding="utf-8")
    return len(runs)


def _render(runs: Sequence[ReportRun], groups: Sequence[Group], group_by: str) -> str:
    environment = Environment(
        loader=PackageLoader("drpo_verl.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "caption": _caption,
        "code": _code,
        "breakable": _breakable,
        "data": _data,
        "difference": _difference,
        "interval": _interval,
    }
    environment.globals |= {"steps_of": steps_of, "why_ended": why_ended}
    environment.globals |= {"style": {group.label: style(index) for index, group in enumerate(groups)}}
    comparisons = _comparisons(groups)
    drawn: list[tuple[Section, list[Drawn]]] = [(section, draw_section(section, groups)) for section in SECTIONS]
    return environment.get_template("page.html.jinja").render(
        runs=runs,
        groups=groups,
        group_by=None if group_by == METHOD else group_by,
        rows=[(run, group, _cells(run)) for group in groups for run in group.runs],
        sections=[(section, charts) for section, charts in drawn if charts],
        differences=_settings(config_differences(runs), groups),
        without_config=[run.name for run in runs if not run.config],
        environment=_settings(
            settings_by_value({run.name: run.environment for run in runs if run.environment}), groups
        ),
        without_environment=[run.name for run in runs if not run.environment],
        comparisons=comparisons,
        quantities=list(dict.fromkeys(what for _, rows in comparisons for _, cells in rows for what in cells)),
        ended=[run for group in groups for run in group.runs if run.ended],
        not_finite=[(run, _not_finite(run)) for group in groups for run in group.runs if run.not_finite],
        smoothing=_smoothing(max(run.trained_steps for run in runs)),
        worst_tokens=[(run, _worst(run)) for group in groups for run in group.runs if run.worst_tokens],
        context=_context,
        last_steps=LAST_STEPS,
        version=__version__,
        date=date.today().isoformat(),
        font=Markup(FONT),
        plotlyjs=Markup(get_plotlyjs()),
    )


def _data(drawn: Drawn) -> Markup:
    """The figure as JSON for a script element, which an unescaped ``<`` could end."""
    return Markup(drawn.figure.to_json().replace("<", "\\u003c"))


def _breakable(name: str) -> Markup:
    """Escaped, and allowed to break after underscores and slashes."""
    return Markup(re.sub(r"([_/])", r"\1<wbr>", str(escape(name))))


def _caption(drawn: Drawn) -> Markup:
    """What the chart shows, what a bad value looks like, and how it is drawn."""
    told = (f"{each.meaning} (`{each.name}`).{f' Bad: {each.bad}.' if each.bad else ''}" for each in drawn.metrics)
    return _code(" ".join([*told, _HOW_DRAWN[drawn.panel.kind]]))


def _code(text: str) -> Markup:
    """Escaped, with what is in backquotes as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _settings(
    differences: Sequence[Difference], groups: Sequence[Group]
) -> list[tuple[list[str], tuple[tuple[str, str], ...]]]:
    """Settings that have the same values in the same runs, with each value and the names of the runs in words."""
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for each in differences:
        values = tuple((value, name_runs(names, groups)) for value, names in each.values)
        alike.setdefault(values, []).append(each.key)
    return [(keys, values) for values, keys in alike.items()]


def _cells(run: ReportRun) -> dict[str, str]:
    """A run's line in the overview."""
    before, after = _before_and_after(run.accuracies)
    largest = run.values(names.ABS_PROB_DIFF_MAX).values()
    return {
        "Method": _breakable(run.method or _NOTHING),
        "Steps": steps_of(run),
        "Reward at the end": _number(run.last(names.REWARD), ".3f"),
        "Outside": _number(mean(run.values(names.OUTSIDE).values()), ".2%"),
        "Held-out before": _accuracies(before),
        "Held-out after": _accuracies(after),
        "Mismatch": _number(mean(run.values(names.MISMATCH_MEAN).values()), ".2g"),
        "With drift": _number(mean(run.values(names.DRIFT_MEAN).values()), ".2g"),
        "abs(π − μ), largest": _number(max(largest, default=None), ".2g"),
    }


def _comparisons(groups: Sequence[Group]) -> list[Comparison]:
    """Each group that others can be compared with at the same seeds, and each of these with its differences by name."""
    comparisons: list[Comparison] = []
    for baseline in groups[:MOST_BASELINES] if len(groups) > 1 else ():
        by_group: dict[str, dict[str, PairedDifference]] = {}
        for each in compare(baseline, groups):
            by_group.setdefault(each.group.label, {})[each.what] = each
        rows = [(group, by_group[group.label]) for group in groups if group.label in by_group]
        comparisons += [(baseline, rows)] if rows else []
    return comparisons


def _difference(one: PairedDifference) -> str:
    return f"{_signed(one.mean, one.is_share)}{' points' if one.is_share else ''}{'*' if one.early else ''}"


def _interval(one: PairedDifference) -> str:
    """The interval of a mean difference, if it has one, and how many of the pairs have its sign."""
    between = " to ".join(_signed(end, one.is_share) for end in one.interval or ())
    return f"{between}{', ' if between else ''}{one.same_sign} of {len(one.differences)}"


def _signed(value: float, is_share: bool) -> str:
    # A share's difference is in percentage points, for which a per cent sign would be wrong.
    return f"{100 * value if is_share else value:+.{1 if is_share else 3}f}".replace("-", "−")


def _smoothing(steps: int) -> tuple[int, int] | None:
    """Over how many steps the curves are averaged at first, and at most; both odd. None for runs too short for it."""
    if steps < _FEWEST_TO_SMOOTH:
        return None
    return steps // _SMOOTHED_PART // 2 * 2 + 1, steps // 3 // 2 * 2 + 1


def _not_finite(run: ReportRun) -> list[tuple[str, str]]:
    """The metrics that are NaN or infinite, and the steps at which they are, the first to be so first."""
    named = sorted(run.not_finite.items(), key=lambda item: item[1][0])
    shown = [(name, _ranges(steps)) for name, steps in named[:_MOST_NOT_FINITE]]
    more = len(named) - len(shown)
    return [*shown, *([(f"and {more} more", "")] if more else [])]


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, those that follow each other as ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in ranges)


def _worst(run: ReportRun) -> list[WorstToken]:
    """Those of all steps on which the two policies differ most, the worst first."""
    return sorted(run.worst_tokens, key=_how_bad, reverse=True)[:_WORST_TOKENS]


def _how_bad(worst: WorstToken) -> float:
    return math.inf if math.isnan(worst.abs_prob_diff) else worst.abs_prob_diff


def _context(worst: WorstToken) -> str:
    context = worst.context
    return context if len(context) <= _CONTEXT_CHARACTERS else f"…{context[-_CONTEXT_CHARACTERS:]}"


def _number(value: float | None, form: str) -> str:
    return _NOTHING if value is None else format(value, form)


def _before_and_after(accuracies: Sequence[Accuracy]) -> tuple[list[Accuracy], list[Accuracy]]:
    """The first and the last of each data source, as far as they are before and after training."""
    before, after = [], []
    for source in sorted({each.source for each in accuracies}):
        on_source = [each for each in accuracies if each.source == source]
        before += on_source[:1] if len(on_source) > 1 or on_source[0].step == 0 else []
        after += on_source[-1:] if on_source[-1].step > 0 else []
    return before, after


def _accuracies(accuracies: Sequence[Accuracy]) -> str:
    """One alone, or a line for each that names its source."""
    if len(accuracies) <= 1:
        return _accuracy(accuracies[0]) if accuracies else _NOTHING
    return Markup("<br>").join(Markup("{}: {}").format(_breakable(each.source), _accuracy(each)) for each in accuracies)


def _accuracy(accuracy: Accuracy) -> str:
    if accuracy.interval is None:
        return f"{accuracy.value:.3f}"
    low, high = accuracy.interval
    return Markup('{:.3f} <span class="interval">{:.3f} to {:.3f}</span>').format(accuracy.value, low, high)

"""What docs/study.md shows, made of the committed results: ``make study-page``, or ``python -m benchmarks.study_page``.

Reads studies/trust_region_map.yaml and what ``make study`` writes, runs.parquet and steps.parquet in docs/study/.
Writes the tables of docs/study.md, the pictures in docs/study/, and drpo_verl/evidence.json, by which ``drpo-verl
probe`` and ``drpo-verl check`` know what the study supports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median, variance

from benchmarks.study_claims import (
    ASYNCHRONOUS,
    FP8_KV,
    FP32,
    FRESH,
    INT3,
    INT4,
    LONG_TAIL,
    STALE,
    STALE_ALONE,
    between,
    claims_table,
    with_interval,
    with_verdicts,
)
from benchmarks.study_evidence import evidence
from benchmarks.study_map import AROUND_MU, BASELINE, RESULTS, Difference, Setting, StudyMap, difference_of
from benchmarks.study_pictures import draw
from benchmarks.study_style import method_label
from docs.marked import replaced
from drpo_verl.metrics import names
from drpo_verl.study.cells import Cell

PAGE, EVIDENCE = Path("docs/study.md"), Path("drpo_verl/evidence.json")

_REMOVED = f"{names.TRUST_REGION}/gradient_removed_frac"
_RARE = f"{names.MISMATCH}/low_prob_frac"
_END = "<!-- The end of what `make study-page` makes. -->"


def _begin(part: str) -> str:
    return f"<!-- {part}: made from docs/study/*.parquet by `make study-page`. -->"


def summary(study: StudyMap) -> str:
    """How many runs of the plan there are, what they took, and which cells are still to be run."""
    runs = [run for cell in study.cells for run in cell.runs]
    planned = sum(len(cell.planned) for cell in study.cells)
    hours = sum(run.seconds for run in runs) / 3600
    mean = sum(run.seconds for run in runs) / len(runs) if runs else 0.0
    failed, collapsed = (sum(getattr(cell, what) for cell in study.cells) for what in ("failed", "collapsed"))
    lines = [
        f"**{len(runs)} of {planned} planned runs are made**, {failed} of them failed, {collapsed} collapsed: "
        f"{hours:.1f} hours, {mean:.0f} s a run with its start-up.",
    ]
    rare, in_tail = (_rare(study, long_tail) for long_tail in (False, True))
    if rare:
        lines.append(
            f"Of the sampled tokens {rare} had μ ≤ 0.01{f', with the long tail {in_tail}' if in_tail else ''}."
        )
    lines += _widths(study)
    missing = [f"- {setting}: {'; '.join(of)}" for setting in study.settings if (of := _missing(study, setting))]
    if missing:
        return "\n\n".join([*lines, "Not run yet, or not with every seed:", "\n".join(missing)])
    return "\n\n".join([*lines, "The plan is run in full."])


def _rare(study: StudyMap, long_tail: bool) -> str:
    """The share of the tokens that were rarely sampled, of the policies with a long tail or of the others."""
    runs = [
        run for setting in study.settings if setting.has_long_tail == long_tail
        for _, cell in study.made(setting) for run in cell.finished
    ]  # fmt: skip
    shares = [value for run in runs if math.isfinite(value := run.mean(_RARE))]
    return f"{100 * sum(shares) / len(shares):.2g} %" if shares else ""


def _compared(study: StudyMap) -> Iterator[tuple[Cell, Cell, Difference]]:
    """Every cell that has seeds in common with no trust region in its setting, that one, and their difference."""
    for setting in study.settings:
        baseline = study.cell(setting, BASELINE)
        for method, cell in study.made(setting):
            difference = None if method.name == BASELINE else study.difference(setting, method.name)
            if baseline is not None and difference is not None:
                yield cell, baseline, difference


def _widths(study: StudyMap) -> list[str]:
    """How large a difference has to be to be seen: half of the intervals by the number of seeds, at the median."""
    halves: dict[int, list[float]] = {}
    for _, _, difference in _compared(study):
        if difference.interval is not None:
            halves.setdefault(len(difference.values), []).append(difference.interval[1] - difference.mean)
    parts = [f"±{median(of_count):.2f} with {count} seeds" for count, of_count in sorted(halves.items())]
    return (
        [f"The intervals of the differences to no trust region are, at the median, {', '.join(parts)}. "
         f"{_deviations(study)}"]
        if parts
        else []
    )  # fmt: skip


def _deviations(study: StudyMap) -> str:
    """What taking differences seed by seed narrows: standard deviations over the seeds, pooled over all cells."""
    paired, unpaired, freedom = 0.0, 0.0, 0
    for cell, baseline, difference in _compared(study):
        seeds = sorted(set(cell.ends) & set(baseline.ends))
        if len(seeds) < 2:
            continue
        of_both = [variance([each.ends[seed] for seed in seeds]) for each in (cell, baseline)]
        paired += (len(seeds) - 1) * variance(difference.values)
        unpaired += (len(seeds) - 1) * sum(of_both)
        freedom += len(seeds) - 1
    return (
        f"Over the seeds such a difference has a standard deviation of {math.sqrt(paired / freedom):.3f}, pooled over "
        f"all cells; without pairs it would be {math.sqrt(unpaired / freedom):.3f}."
    )


def _missing(study: StudyMap, setting: Setting) -> list[str]:
    """The methods of a setting that are not run with all their seeds."""
    found = []
    for name, method in study.methods.items():
        cell = study.cell(setting, name)
        if cell is not None and len(cell.runs) < len(cell.planned):
            there = f" ({len(cell.runs)} of {len(cell.planned)} seeds)" if cell.runs else ""
            found.append(f"{method_label(method)}{there}")
    return found


def cells_table(study: StudyMap) -> str:
    """Every cell that has been run as a line of a table in Markdown."""
    lines = [
        "| rollout | method | reward at the end | seeds | collapsed | failed | difference to no trust region "
        "| the same by bootstrap | outside | corrected | gradient removed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for setting in study.settings:
        for name, method in study.methods.items():
            cell = study.cell(setting, name)
            if cell is None or not cell.runs:
                continue
            difference = None if name == BASELINE else study.difference(setting, name)
            columns = [
                str(setting), method_label(method), _end_of(cell), f"{len(cell.runs)} of {len(cell.planned)}",
                str(cell.collapsed), str(cell.failed),
                with_interval(difference), between(difference.resampled) if difference else "",
                _share(cell, names.OUTSIDE), _share(cell, names.CORRECTED), _share(cell, _REMOVED),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _end_of(cell: Cell) -> str:
    ends = difference_of(list(cell.ends.values()))
    if ends is None:
        return ""
    half = f" ± {ends.interval[1] - ends.mean:.3f}" if ends.interval else ""
    return f"{ends.mean:.3f}{half}"


def _mean(cell: Cell, metric: str, steps: slice = slice(None)) -> float:
    """Over the finished runs; NaN where none has the metric."""
    values = [value for run in cell.finished if math.isfinite(value := run.mean(metric, steps))]
    return sum(values) / len(values) if values else math.nan


def _share(cell: Cell, metric: str, steps: slice = slice(None)) -> str:
    share = _mean(cell, metric, steps)
    if math.isnan(share):
        return ""
    return f"{100 * share:.2g} %" if share else "0"


def costs_table(study: StudyMap) -> str:
    """What mismatch and staleness cost where no trust region is in the way, as a table in Markdown."""
    lines = ["| without a trust region | minus | difference of the rewards at the end | seeds |", "|---|---|---|---|"]
    settings = (
        (FP8_KV, FP32), (INT4, FP32), (INT3, FP32),
        (FP32, FRESH), (STALE_ALONE, FP32), (STALE, STALE_ALONE), (ASYNCHRONOUS, INT3),
    )  # fmt: skip
    for worse, better in settings:
        difference = study.contrast([(1.0, worse, BASELINE), (-1.0, better, BASELINE)])
        if difference is not None:
            lines.append(f"| {worse} | {better} | {with_interval(difference)} | {len(difference.values)} |")
    return "\n".join(lines)


def deltas_table(study: StudyMap) -> str:
    """DRPO around mu by how far its delta is from what the engines differ by, as a table in Markdown."""
    lines = [
        "| rollout | mean abs(π − μ) before an update | δ | δ over that mean | difference to no trust region "
        "| collapsed |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for setting in (FP8_KV, INT4, INT3):
        mismatch = study.engine_mismatch(setting)
        for method, cell in study.made(setting):
            difference = study.difference(setting, method.name)
            if method.delta is not None and method.family == AROUND_MU and difference is not None:
                rows.append((method.delta / mismatch, setting, mismatch, method.delta, difference, cell))
    for ratio, setting, mismatch, delta, difference, cell in sorted(rows, key=lambda row: row[0]):
        times = f"{ratio:.0f}" if ratio > 10 else f"{ratio:.1f}"
        lines.append(
            f"| {setting} | {mismatch:.3f} | {delta:g} | {times} | {with_interval(difference)} "
            f"| {cell.collapsed} of {len(cell.finished)} |"
        )
    return "\n".join(lines)


def tail_table(study: StudyMap) -> str:
    """What each method's policy samples at the end in the setting with a long tail, as a table in Markdown."""
    lines = [
        "| method | mean of −log μ in the last 10 steps, nats | tokens with μ ≤ 0.01 there "
        "| outside with A > 0, of all tokens | with A < 0 |",
        "|---|---|---|---|---|",
    ]
    last = slice(-study.plan.collapse.steps, None)
    for method, cell in study.made(LONG_TAIL):
        outside = [_share(cell, f"{names.OUTSIDE}_{sign}_advantage") for sign in ("positive", "negative")]
        surprise = f"{-_mean(cell, names.BEHAVIOUR_LOG_PROB, last):.2f}"
        lines.append(f"| {' | '.join([method_label(method), surprise, _share(cell, _RARE, last), *outside])} |")
    return "\n".join(lines)


def parts(study: StudyMap) -> Mapping[str, str]:
    """What is made of the results, by the name that its place in the page has."""
    return {
        "Runs": summary(study), "Costs": costs_table(study), "Deltas": deltas_table(study), "Tail": tail_table(study),
        "Claims": claims_table(study), "Cells": cells_table(study),
    }  # fmt: skip


def with_results(page: str, study: StudyMap) -> tuple[str, list[str]]:
    """A page with what is made of the results between its marks, and with their verdicts in its text.

    Returns:
        The page, and the verdicts in its text that have changed.

    Raises:
        ValueError: when it lacks one of the marks.
    """
    for name, text in parts(study).items():
        page = replaced(page, _begin(name), _END, text)
    return with_verdicts(study, page)


def main(root: Path = Path()) -> None:
    """Write the page, the pictures and the file that the product ships, and name the verdicts that have changed."""
    study = StudyMap.read(root)
    page, changed = with_results((root / PAGE).read_text(encoding="utf-8"), study)
    (root / PAGE).write_text(page, encoding="utf-8")
    (root / EVIDENCE).write_text(evidence(study), encoding="utf-8")
    draw(study, root / RESULTS)
    if changed:
        print(f"Read the answers in {PAGE} again, these verdicts have changed:", *dict.fromkeys(changed), sep="\n- ")


if __name__ == "__main__":
    main()

"""The results of a study cell by cell: runs that differ in nothing but their seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpo_verl.errors import UserError
from drpo_verl.metrics import names
from drpo_verl.study.plan import Plan, PlannedRun
from drpo_verl.study.results import RUNS_FILE, STEPS_FILE, overrides_text, rows_by_run


@dataclass(frozen=True)
class MadeRun:
    """A run of a study that was made to an end, good or bad.

    Attributes:
        seed: ``run.seed``.
        failed: whether it failed.
        collapsed: by the study's definition; None for a run that is too short to tell.
        seconds: how long it took, start-up included.
        metrics: the values of each metric over the steps, ``[T]``; NaN where it was not logged.
    """

    seed: int
    failed: bool
    collapsed: bool | None
    seconds: float
    metrics: Mapping[str, NDArray[np.float64]]

    def mean(self, metric: str, steps: slice = slice(None)) -> float:
        """The mean of a metric over some steps that have it; NaN when none has, or nothing is known of the metric."""
        values = self.metrics.get(metric, np.empty(0))[steps]
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else math.nan


@dataclass(frozen=True)
class Cell:
    """The runs of a study that differ in nothing but their seed.

    Attributes:
        choices: of each axis.
        planned: the seeds of the plan.
        runs: those that were made, by ascending seed.
        last: how many steps are the end of a run, by the study's definition of a collapse.
    """

    choices: Mapping[str, str]
    planned: tuple[int, ...]
    runs: tuple[MadeRun, ...]
    last: int

    @property
    def finished(self) -> tuple[MadeRun, ...]:
        """The runs that did not fail."""
        return tuple(run for run in self.runs if not run.failed)

    @property
    def ends(self) -> dict[int, float]:
        """The mean reward of the last steps of each finished run, by its seed."""
        return {run.seed: run.mean(names.REWARD, slice(-self.last, None)) for run in self.finished}

    @property
    def collapsed(self) -> int:
        """How many of the finished runs have collapsed."""
        return sum(run.collapsed is True for run in self.finished)

    @property
    def failed(self) -> int:
        """How many of the runs have failed."""
        return len(self.runs) - len(self.finished)


def read_cells(plan: Plan, folder: Path) -> list[Cell]:
    """Read the tables of a study, as ``drpo_verl.study.results.write`` leaves them.

    Args:
        plan: the study.
        folder: of its two tables.

    Returns:
        Every cell of the plan in its order, also those of which no run was made yet.

    Raises:
        UserError: when a run was made with other settings than the plan now has for it, or is not in the plan.
    """
    planned = {run.name: run for run in plan.runs}
    steps = rows_by_run(folder / STEPS_FILE)
    made = {}
    for name, rows in rows_by_run(folder / RUNS_FILE).items():
        for row in rows:
            _require_planned(row, planned.get(name))
            made[name] = _made(row, steps.get(name, []))
    cells: dict[tuple[str, ...], list[PlannedRun]] = {}
    for run in plan.runs:
        cells.setdefault(tuple(run.choices.values()), []).append(run)
    return [
        Cell(
            choices=runs[0].choices,
            planned=tuple(sorted(run.seed for run in runs)),
            runs=tuple(sorted((made[run.name] for run in runs if run.name in made), key=lambda each: each.seed)),
            last=plan.collapse.steps,
        )
        for runs in cells.values()
    ]


def _require_planned(row: Mapping[str, Any], run: PlannedRun | None) -> None:
    if run is None or row["overrides"] != overrides_text(run):
        how = "is not in the plan" if run is None else "was made with other settings than the plan has now"
        raise UserError(f"run {row['run']} {how}: make the tables anew with `drpo-verl study FILE --collect`.")


def _made(row: Mapping[str, Any], steps: list[dict[str, Any]]) -> MadeRun:
    steps.sort(key=lambda step: step["step"])
    metrics = [name for name in (steps[0] if steps else {}) if "/" in name]
    return MadeRun(
        seed=row["seed"],
        failed=row["status"] == "failed",
        collapsed=row["collapsed"],
        seconds=row["seconds"],
        metrics={name: np.array([step[name] for step in steps], np.float64) for name in metrics},
    )

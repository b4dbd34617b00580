"""The results of a study as two small tables: one of its runs, and one of their steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drpo_verl.metrics import names
from drpo_verl.run_folder.steps import METRICS_FILE, Step, read_steps
from drpo_verl.study.execute import Outcome, outcome
from drpo_verl.study.plan import Plan, PlannedRun

RUNS_FILE = "runs.parquet"
STEPS_FILE = "steps.parquet"

METRICS = (
    names.REWARD,
    "actor/grad_norm",
    "actor/pg_loss",
    "response_length/mean",
    names.DELTA,
    names.DIVERGING,
    names.OUTSIDE,
    f"{names.TRUST_REGION}/outside_frac_positive_advantage",
    f"{names.TRUST_REGION}/outside_frac_negative_advantage",
    names.CORRECTED,
    f"{names.TRUST_REGION}/gradient_removed_frac",
    names.WEIGHT_MEAN,
    names.WEIGHT_MIN,
    names.ABS_PROB_DIFF_MEAN,
    names.ABS_PROB_DIFF_MAX,
    names.KL,
    names.RATIO_MAX,
    f"{names.MISMATCH}/low_prob_frac",
    names.BEHAVIOUR_LOG_PROB,
    names.MISMATCH_MEAN,
    f"{names.INFERENCE_MISMATCH}/kl_k3",
    names.DRIFT_MEAN,
    f"{names.POLICY_DRIFT}/kl_k3",
    names.ANCHOR_ABS_PROB_DIFF_MEAN,
    names.STEP_SECONDS,
    "timing_s/gen",
    "timing_s/update_actor",
)
"""What is kept of a step, unless the study lists its own."""


def overrides_text(run: PlannedRun) -> str:
    """The overrides of a run as the table of runs has them, by which it is known again."""
    return " ".join(run.overrides)


def rows_by_run(file: Path) -> Mapping[str, list[dict[str, Any]]]:
    """The rows of one of the two tables, by the name of the run; none of a run that it does not have."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(file).to_pylist():
        rows[row["run"]].append(row)
    return rows


def recorded(plan: Plan, out: Path) -> dict[str, str]:
    """The status of each run that the tables in a folder already have, made with the settings of the plan.

    Tables are kept, and committed, where the folders of the runs are not: such a run is not made again.
    """
    if not ((out / RUNS_FILE).is_file() and (out / STEPS_FILE).is_file()):
        return {}
    rows = rows_by_run(out / RUNS_FILE)
    return {
        run.name: row["status"]
        for run in plan.runs
        for row in rows.get(run.name, [])
        if row["overrides"] == overrides_text(run)
    }


def collect(plan: Plan, folder: Path, out: Path) -> tuple[pa.Table, pa.Table]:
    """Gather what the runs of a study have left.

    Args:
        plan: the study.
        folder: that of its runs.
        out: where earlier tables may be: a run that has no folder any more is taken from them.

    Returns:
        The table of the runs that were made to an end, good or bad: the choice of each axis, seed, status, why,
        seconds, steps, whether it collapsed. And that of their steps: the same names, the step, and a column for each
        metric, null where it was not logged.
    """
    runs: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    metrics = plan.metrics or METRICS
    of_tables = recorded(plan, out)
    earlier_runs, earlier_steps = (rows_by_run(out / name) if of_tables else {} for name in (RUNS_FILE, STEPS_FILE))
    for run in plan.runs:
        ended = outcome(folder, plan, run)
        if ended is None:
            if run.name in of_tables:
                runs += earlier_runs[run.name]
                steps += earlier_steps.get(run.name, [])
            continue
        logged = _steps(folder / run.name)
        runs.append(_row_of_run(plan, run, ended, logged))
        steps += [
            {**_names(run), "step": step.step, **{name: step.metrics.get(name) for name in metrics}} for step in logged
        ]
    identity = [("run", pa.string()), *((axis, pa.string()) for axis in plan.axes), ("seed", pa.int32())]
    of_runs = [("status", pa.string()), ("why", pa.string()), ("seconds", pa.float32()), ("steps", pa.int32()),
               ("collapsed", pa.bool_()), ("overrides", pa.string())]  # fmt: skip
    of_steps = [("step", pa.int32()), *((name, pa.float32()) for name in metrics)]
    return (
        pa.Table.from_pylist(runs, pa.schema(identity + of_runs)),
        pa.Table.from_pylist(steps, pa.schema(identity + of_steps)),
    )


def write(tables: tuple[pa.Table, pa.Table], out: Path) -> None:
    """Write both tables; whoever is interrupted still has the earlier ones, which may be all that is left of a run."""
    out.mkdir(parents=True, exist_ok=True)
    for table, name in zip(tables, (RUNS_FILE, STEPS_FILE), strict=True):
        unfinished = out / f"{name}.unfinished"
        pq.write_table(table, unfinished, compression="zstd")
        unfinished.replace(out / name)


def _names(run: PlannedRun) -> dict[str, Any]:
    return {"run": run.name, **run.choices, "seed": run.seed}


def _steps(folder: Path) -> list[Step]:
    file = folder / METRICS_FILE
    return [step for step in read_steps(file) if step.step > 0] if file.exists() else []


def _row_of_run(plan: Plan, run: PlannedRun, ended: Outcome, steps: list[Step]) -> dict[str, Any]:
    rewards = [step.metrics.get(names.REWARD, math.nan) for step in steps]
    return {
        **_names(run), "status": ended.status, "why": ended.why, "seconds": ended.seconds, "steps": len(steps),
        "collapsed": plan.collapse.happened(rewards), "overrides": overrides_text(run),
    }  # fmt: skip

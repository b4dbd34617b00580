"""The results of a study as two small tables: one of its runs, and one of their steps."""

from __future__ import annotations

import math
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
    f"{names.TRUST_REGION}/corrective_frac",
    f"{names.TRUST_REGION}/gradient_removed_frac",
    names.WEIGHT_MEAN,
    names.WEIGHT_MIN,
    names.ABS_PROB_DIFF_MEAN,
    names.ABS_PROB_DIFF_MAX,
    names.KL,
    names.RATIO_MAX,
    names.BEHAVIOUR_LOG_PROB,
    f"{names.INFERENCE_MISMATCH}/abs_prob_diff_mean",
    f"{names.INFERENCE_MISMATCH}/kl",
    f"{names.POLICY_DRIFT}/abs_prob_diff_mean",
    f"{names.POLICY_DRIFT}/kl",
    names.STEP_SECONDS,
    "timing_s/gen",
    "timing_s/update_actor",
)
"""What is kept of a step, unless the study lists its own."""


def collect(plan: Plan, folder: Path) -> tuple[pa.Table, pa.Table]:
    """Gather what the runs of a study have left.

    Args:
        plan: the study.
        folder: that of its runs.

    Returns:
        The table of the runs that were made to an end, good or bad: the choice of each axis, seed, status, why,
        seconds, steps, whether it collapsed. And that of their steps: the same names, the step, and a column for each
        metric, null where it was not logged.
    """
    runs: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    metrics = plan.metrics or METRICS
    for run in plan.runs:
        ended = outcome(folder, plan, run)
        if ended is None:
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
    """Write both tables."""
    out.mkdir(parents=True, exist_ok=True)
    for table, name in zip(tables, (RUNS_FILE, STEPS_FILE), strict=True):
        pq.write_table(table, out / name, compression="zstd")


def _names(run: PlannedRun) -> dict[str, Any]:
    return {"run": run.name, **run.choices, "seed": run.seed}


def _steps(folder: Path) -> list[Step]:
    file = folder / METRICS_FILE
    return [step for step in read_steps(file) if step.step > 0] if file.exists() else []


def _row_of_run(plan: Plan, run: PlannedRun, ended: Outcome, steps: list[Step]) -> dict[str, Any]:
    rewards = [step.metrics.get(names.REWARD, math.nan) for step in steps]
    return {
        **_names(run), "status": ended.status, "why": ended.why, "seconds": ended.seconds, "steps": len(steps),
        "collapsed": plan.collapse.happened(rewards), "overrides": " ".join(run.overrides),
    }  # fmt: skip

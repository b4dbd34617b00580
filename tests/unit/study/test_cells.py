"""The results of a study read back cell by cell."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drpo_verl.errors import UserError
from drpo_verl.metrics.catalogue import SECTIONS
from drpo_verl.study.cells import read_cells
from drpo_verl.study.plan import Collapse, Plan, PlannedRun
from drpo_verl.study.results import METRICS, RUNS_FILE, STEPS_FILE

REWARD = "critic/score/mean"
PLAN = Plan(
    "map", "?", ("method",), Collapse(2, 0.5), (),
    tuple(PlannedRun({"method": name}, seed, (f"method={name}",)) for seed in (2, 1) for name in ("drpo", "grpo")),
)  # fmt: skip


def _write(folder: Path, *runs: dict[str, Any]) -> None:
    steps = []
    for run in runs:
        rewards = run.pop("rewards")
        run |= {"run": f"{run['method']}-seed{run['seed']}", "why": "", "seconds": 60.0, "steps": len(rewards)}
        run.setdefault("status", "finished")
        run.setdefault("collapsed", False)
        run.setdefault("overrides", f"method={run['method']}")
        steps += [
            {"run": run["run"], "method": run["method"], "seed": run["seed"], "step": step, REWARD: reward}
            for step, reward in reversed(list(enumerate(rewards, 1)))
        ]
    pq.write_table(pa.Table.from_pylist(list(runs)), folder / RUNS_FILE)
    pq.write_table(pa.Table.from_pylist(steps), folder / STEPS_FILE)


def test_a_cell_has_the_runs_of_its_seeds_and_says_what_is_missing(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {"method": "drpo", "seed": 2, "rewards": [0.8, 0.8, 0.1, 0.3], "collapsed": True},
        {"method": "drpo", "seed": 1, "rewards": [0.2, 0.4, None, 0.6]},
    )
    drpo, grpo = read_cells(PLAN, tmp_path)
    assert drpo.choices == {"method": "drpo"} and drpo.planned == (1, 2)
    assert drpo.ends == pytest.approx({1: 0.6, 2: 0.2}) and (drpo.collapsed, drpo.failed) == (1, 0)
    assert [run.seed for run in drpo.runs] == [1, 2] and drpo.runs[1].metrics[REWARD].tolist() == [0.8, 0.8, 0.1, 0.3]
    assert drpo.runs[0].mean(REWARD, slice(2)) == pytest.approx(0.3) and math.isnan(drpo.runs[0].mean("not/logged"))
    assert grpo.runs == () and grpo.planned == (1, 2) and grpo.ends == {}


def test_a_failed_run_is_counted_and_is_no_end(tmp_path: Path) -> None:
    _write(tmp_path, {"method": "drpo", "seed": 1, "rewards": [0.5, 0.5, 0.5, 0.5], "status": "failed"})
    drpo, _ = read_cells(PLAN, tmp_path)
    assert drpo.failed == 1 and drpo.ends == {} and drpo.collapsed == 0


def test_results_of_another_plan_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, {"method": "drpo", "seed": 1, "rewards": [0.5], "overrides": "method=drpo data.seed=1"})
    with pytest.raises(UserError, match="drpo-seed1 was made with other settings than the plan has now"):
        read_cells(PLAN, tmp_path)
    _write(tmp_path, {"method": "drpo", "seed": 3, "rewards": [0.5]})
    with pytest.raises(UserError, match="drpo-seed3 is not in the plan"):
        read_cells(PLAN, tmp_path)


def test_what_is_kept_of_a_step_is_logged_under_that_name() -> None:
    logged = {name for section in SECTIONS for name in section.names}
    of_verl = {"actor/pg_loss", "timing_s/gen", "timing_s/update_actor"}
    assert set(METRICS) - of_verl <= logged

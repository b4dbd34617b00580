"""Which runs of a study are made, how an end is kept, and the tables; with a stand-in for the training itself."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drpo_verl.errors import UserError
from drpo_verl.study import execute
from drpo_verl.study.execute import OUTCOME_FILE, Execution, Outcome, outcome
from drpo_verl.study.plan import Collapse, Plan, PlannedRun
from drpo_verl.study.results import METRICS, RUNS_FILE, STEPS_FILE, collect, recorded, write

# Writes two steps where drpo_verl.train would, and fails as it would.
TRAIN = """
import json, pathlib, sys
settings = dict(each.split("=", 1) for each in sys.argv[1:])
folder = pathlib.Path(settings["run.dir"])
with open(folder / "metrics.jsonl", "w") as file:
    for step in (1, 2):
        file.write(json.dumps({"step": step, "data": {"critic/score/mean": 0.6 / step ** 2}}) + chr(10))
if settings["method"] == "surrogate":
    print("error: it broke at step 2.")
    sys.exit(3)
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    package = tmp_path / "package"
    (package / "stand_in").mkdir(parents=True)
    (package / "stand_in" / "__init__.py").write_text("")
    (package / "stand_in" / "train.py").write_text(TRAIN)
    starter = tmp_path / "python"
    starter.write_text(f'#!/bin/sh\nshift 2\nPYTHONPATH={package} exec {sys.executable} -m stand_in.train "$@"\n')
    starter.chmod(0o755)
    monkeypatch.setattr(execute.sys, "executable", str(starter))
    runs = tuple(PlannedRun({"method": name}, seed, (f"method={name}",)) for name in ("drpo", "surrogate")
                 for seed in (1, 2))  # fmt: skip
    return Plan("map", "?", ("method",), Collapse(1, 0.5), (), runs)


def test_each_run_is_made_once_and_a_failed_one_is_a_result(plan: Plan, tmp_path: Path) -> None:
    made: list[str] = []

    def count(run: PlannedRun, ended: Outcome) -> None:
        made.append(f"{run.name} {ended.status}")

    folder = tmp_path / "runs"
    Execution(plan, folder).make(plan.runs, count)
    assert made == ["drpo-seed1 finished", "drpo-seed2 finished", "surrogate-seed1 failed", "surrogate-seed2 failed"]
    assert all(outcome(folder, plan, run) is not None for run in plan.runs)
    failed = outcome(folder, plan, plan.runs[2])
    assert failed is not None and failed.why == "exit code 3: it broke at step 2."

    runs, steps = collect(plan, folder, tmp_path / "tables")
    assert runs.column("status").to_pylist() == ["finished", "finished", "failed", "failed"]
    assert runs.column("collapsed").to_pylist() == [True] * 4 and runs.column("steps").to_pylist() == [2] * 4
    assert steps.num_rows == 8 and steps.column_names == ["run", "method", "seed", "step", *METRICS]
    write((runs, steps), tmp_path / "tables")
    assert pq.read_table(tmp_path / "tables" / RUNS_FILE).equals(runs)
    assert pq.read_table(tmp_path / "tables" / STEPS_FILE).num_rows == 8


def test_an_interrupted_run_or_one_with_other_settings_is_made_anew(plan: Plan, tmp_path: Path) -> None:
    folder, run = tmp_path / "runs", plan.runs[0]
    Execution(plan, folder).make([run], lambda *_: None)
    (folder / run.name / OUTCOME_FILE).unlink()
    (folder / run.name / "left").touch()
    assert outcome(folder, plan, run) is None
    Execution(plan, folder).make([run], lambda *_: None)
    assert outcome(folder, plan, run) is not None and not (folder / run.name / "left").exists()
    other = PlannedRun(run.choices, run.seed, (*run.overrides, "data.train_batch_size=8"))
    assert outcome(folder, plan, other) is None


def test_a_run_of_which_only_the_tables_are_left_counts_as_made(plan: Plan, tmp_path: Path) -> None:
    folder, out = tmp_path / "runs", tmp_path / "tables"
    Execution(plan, folder).make(plan.runs, lambda *_: None)
    tables = collect(plan, folder, out)
    write(tables, out)
    shutil.rmtree(folder / plan.runs[0].name)
    shutil.rmtree(folder / plan.runs[2].name)
    assert recorded(plan, out) == {run.name: "finished" if run.choices["method"] == "drpo" else "failed"
                                   for run in plan.runs}  # fmt: skip
    again = collect(plan, folder, out)
    assert again[0].equals(tables[0]) and again[1].equals(tables[1])

    changed = PlannedRun(plan.runs[0].choices, 1, ("method=drpo", "data.train_batch_size=8"))
    other = replace(plan, runs=(changed, *plan.runs[1:]))
    assert "drpo-seed1" not in recorded(other, out)
    assert collect(other, folder, out)[0].column("run").to_pylist() == [run.name for run in plan.runs[1:]]


def test_cards_are_those_that_the_user_has_named(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert Execution(plan, tmp_path, parallel=2, cards=1)._visible == ["4", "5"]
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=4,5 names 2 cards, and the runs need 4"):
        Execution(plan, tmp_path, parallel=2, cards=2)


def test_several_at_a_time_on_cards_of_their_own(plan: Plan, tmp_path: Path) -> None:
    ended: dict[str, Outcome] = {}
    Execution(plan, tmp_path, parallel=2, cards=2).make(plan.runs, lambda run, how: ended.update({run.name: how}))
    assert len(ended) == 4
    content = json.loads((tmp_path / "drpo-seed1" / OUTCOME_FILE).read_text())
    assert content["status"] == "finished" and "run.seed=1" in content["overrides"]

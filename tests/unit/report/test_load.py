"""What a report reads of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from drpo_verl.report.load import load_runs


def test_a_run_of_today(make_run) -> None:
    (run,) = load_runs([make_run("one", "cispo", **{"actor_rollout_ref.actor.policy_loss.loss_mode": "pg_tis"})])
    assert (run.name, run.method, run.trained_steps, run.problems) == ("one", "cispo", 3, 16)
    assert run.config["data.seed"] == "1"
    assert run.config["run.dir"] == "outputs/${trainer.experiment_name}"
    assert run.environment == {"verl": "0.9.1", "python": "3.11.2"}
    before, after = run.accuracies
    assert (before.step, before.value, after.step, after.value) == (0, 0.25, 3, 0.5)
    assert before.interval is not None and before.interval[0] < 0.25 < before.interval[1]


def test_an_older_run_and_a_lone_file(make_run) -> None:
    folder = make_run("old", complete=False)
    earlier = (folder / "metrics.jsonl").rename(folder / "metrics.1.jsonl")
    make_run("new")
    (run,) = load_runs([earlier])
    assert (run.name, run.method, run.config, run.accuracies) == ("metrics.1", None, {}, [])
    assert run.values("critic/score/mean")[1] == pytest.approx(0.354, abs=1e-3)
    assert run.values("no/such_metric") == {} and run.last("no/such_metric") is None


def test_values_that_are_not_numbers_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step":1,"data":{"x":null}}\n{"step":2,"data":{"x":2.0}}\n')
    (run,) = load_runs([file])
    assert run.values("x") == {2: 2.0} and run.last("x") == 2.0


def test_runs_of_the_same_name_are_told_apart(make_run) -> None:
    runs = load_runs([make_run("a/run"), make_run("b/run"), make_run("b/other")])
    assert [run.name for run in runs] == ["a/run", "b/run", "b/other"]


def test_what_is_no_run_is_refused(tmp_path: Path, make_run) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics.jsonl.*run.dir"):
        load_runs([tmp_path])
    text = tmp_path / "notes.txt"
    for content in ("hello\n", "[1]\n", '{"step": 1}\n'):
        text.write_text(content)
        with pytest.raises(ValueError, match=r"notes.txt is not a metrics file"):
            load_runs([text])
    run = make_run("twice")
    with pytest.raises(ValueError, match="given twice"):
        load_runs([run, run / "metrics.jsonl"])

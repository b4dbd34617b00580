"""What is said of a run that ended early, and the command that goes on."""

from __future__ import annotations

import json
import os
import shlex
import time
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from drpo_verl.launch.ending import RunFacts, resume_command


def _facts(folder: Path, *, resumes: bool = False, total_steps: int | None = 5) -> RunFacts:
    started = time.time() - 10
    checkpoints = str(folder / "checkpoints")
    return RunFacts(str(folder), checkpoints, total_steps, "go on", "begin again", resumes, started=started)


def _steps(folder: Path, *steps: int) -> None:
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "data": {{}}}}\n' for step in steps))


def _checkpoint(folder: Path, step: int, note: str | None = None) -> Path:
    """The folder of a step that verl has saved whole, and the note that names it."""
    saved = folder / "checkpoints" / f"global_step_{step}"
    (saved / "actor").mkdir(parents=True)
    (saved / "actor" / "weights").touch()
    with zipfile.ZipFile(saved / "data.pt", "w"):
        pass
    note_file = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    note_file.write_text(str(step) if note is None else note)
    return saved


@pytest.mark.parametrize(
    ("steps", "where"),
    [((), "before the end of step 1"), ((0,), "before the end of step 1"), ((0, 1, 2), "in step 3 of 5"),
     ((1, 2, 3, 4, 5), "after step 5, the last one")],
)  # fmt: skip
def test_the_step_is_named(steps: tuple[int, ...], where: str, tmp_path: Path) -> None:
    if steps:
        _steps(tmp_path, *steps)
    line = _facts(tmp_path).end("the disk is full")
    assert line == (
        f"the disk is full, {where}. No checkpoint was saved (trainer.save_freq), so that this starts anew: begin again"
    )
    ended = json.loads((tmp_path / "summary.json").read_text())["ended"]
    assert ended == {"steps": max(steps, default=0), "of": 5, "why": "the disk is full"}


def test_the_number_of_steps_may_not_be_known(tmp_path: Path) -> None:
    _steps(tmp_path, 1, 2)
    assert _facts(tmp_path, total_steps=None).where() == "in step 3"


def test_what_the_summary_has_already_is_kept(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"method": "drpo"}')
    facts = _facts(tmp_path)
    assert not facts.ended_early
    facts.end("stopped")
    assert facts.ended_early and json.loads((tmp_path / "summary.json").read_text())["method"] == "drpo"


def test_the_checkpoint_is_the_one_of_this_run(tmp_path: Path) -> None:
    saved = _checkpoint(tmp_path, 22)
    _steps(tmp_path, 1, 2, 3)
    assert _facts(tmp_path).end("stopped").endswith("To go on from the checkpoint of step 22: go on")
    long_ago = time.time() - 3600
    os.utime(saved, (long_ago, long_ago))  # of an earlier run, which this one has not gone on from
    assert "No checkpoint was saved" in _facts(tmp_path).end("stopped")
    assert _facts(tmp_path, resumes=True).checkpoint == 22


def test_a_resumed_run_that_ends_at_once_is_at_the_step_of_its_checkpoint(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 4)
    assert _facts(tmp_path, resumes=True).where() == "in step 5 of 5"
    assert _facts(tmp_path).where() == "before the end of step 1"


def test_an_empty_note_hides_no_checkpoint(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 2, note="")  # of a disk that is full
    assert _facts(tmp_path).end("stopped").endswith("To go on from the checkpoint of step 2: go on")


def test_a_run_that_has_not_begun_leaves_the_summary_of_an_earlier_one(tmp_path: Path) -> None:
    _steps(tmp_path, 1, 2)
    (tmp_path / "summary.json").write_text("{}")
    long_ago = time.time() - 3600
    os.utime(tmp_path / "metrics.jsonl", (long_ago, long_ago))
    assert "before the end of step 1" in _facts(tmp_path).end("killed")
    assert (tmp_path / "summary.json").read_text() == "{}"


def test_files_that_can_not_be_read_or_written_do_not_hide_the_reason(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{\n")
    (tmp_path / "summary.json").mkdir()
    assert _facts(tmp_path).end("the disk is full").startswith("the disk is full, before the end of step 1. No checkp")


def test_the_command_is_one_for_a_shell() -> None:
    overrides = ["experiment=cpu_tiny", "run.dir=/a folder/${trainer.experiment_name}", "trainer.resume_mode=disable"]
    python, *arguments = shlex.split(resume_command(overrides))
    assert Path(python).name.startswith("python")
    assert arguments == ["-m", "drpo_verl.train", *overrides[:2], "trainer.resume_mode=auto"]


def test_a_script_knows_its_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRPO_VERL_RESUME_COMMAND", "recipes/submit.sh cpu_tiny RESUME_MODE=auto")
    assert resume_command(["a=b"]) == "recipes/submit.sh cpu_tiny RESUME_MODE=auto"


@pytest.mark.parametrize(
    ("mode", "resumes", "first_step"), [("disable", False, 0), ("auto", True, 0), ("resume_path", False, 40)]
)
def test_where_a_run_has_started(
    mode: str, resumes: bool, first_step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = {
        "default_local_dir": "checkpoints", "total_training_steps": None, "resume_mode": mode,
        "resume_from_path": "/other/checkpoints/global_step_40/",
    }  # fmt: skip
    overrides = [f"trainer.resume_mode={mode}", "trainer.resume_from_path=/other/checkpoints/global_step_40/"]
    monkeypatch.setattr("sys.argv", ["train", *overrides])
    facts = RunFacts.of(OmegaConf.create({"run": {"dir": str(tmp_path)}, "trainer": trainer}))
    assert (facts.resumes, facts.first_step, facts.steps) == (resumes, first_step, first_step)
    # With a checkpoint of its own it goes on from that, and without one as it has started.
    assert shlex.split(facts.resume_command)[3:] == [overrides[1], "trainer.resume_mode=auto"]
    assert shlex.split(facts.same_command)[3:] == overrides

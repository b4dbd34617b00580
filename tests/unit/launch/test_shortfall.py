"""A run from which verl's trainer returns before the steps that were asked for is no success."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from drpo_verl.launch.ending import RunFacts
from drpo_verl.launch.shortfall import ShortfallError, require_all_steps
from drpo_verl.run_folder.environment import ENVIRONMENT_FILE


@pytest.fixture(autouse=True)
def python_is_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: sys.executable)


COMMAND = ["experiment=cpu_tiny", "trainer.total_epochs=1", "trainer.total_training_steps=4"]


def run(folder: Path, trained: list[int], validated: list[int] | None = None, **trainer: Any) -> DictConfig:
    """A run's folder with its metrics, and its configuration."""
    lines = [{"step": step, "data": {"val-core/x/acc/mean@1": 0.5}} for step in validated or []]
    lines += [{"step": step, "data": {"training/global_step": step, "critic/score/mean": 0.5}} for step in trained]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / ENVIRONMENT_FILE).touch()
    defaults = {"total_training_steps": 4, "total_epochs": 1, "resume_mode": "disable"}
    return OmegaConf.create({"trainer": {**defaults, "default_local_dir": str(folder / "checkpoints"), **trainer}})


def facts(config: DictConfig, folder: Path) -> RunFacts:
    """What the run's driver knows of it; it has started when the file of its environment was written."""
    trainer = config.trainer
    return RunFacts(
        folder=str(folder), checkpoints=trainer.default_local_dir, total_steps=trainer.total_training_steps,
        resume_command="", same_command="", resumes=trainer.resume_mode == "auto",
        started=(folder / ENVIRONMENT_FILE).stat().st_mtime,
    )  # fmt: skip


def checkpoint(folder: Path, step: int, *, noted: int | None = None, age: float = 0) -> None:
    """A checkpoint of a step, which verl has noted as its newest before so many seconds."""
    saved = folder / "checkpoints" / f"global_step_{step}"
    (saved / "actor").mkdir(parents=True)
    (saved / "actor" / "weights").touch()
    note = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    note.write_text(str(step if noted is None else noted))
    written = (folder / ENVIRONMENT_FILE).stat().st_mtime + 1 - age
    for path in (note, saved):
        os.utime(path, (written, written))


@pytest.mark.parametrize(
    ("trained", "validated", "trainer"),
    [
        ([1, 2, 3, 4], [0, 4], {}),
        ([3, 4], [2], {"resume_mode": "auto"}),
        ([1, 2], [], {"total_training_steps": None}),  # verl computes it from the epochs
        ([], [0], {"val_only": True}),
    ],
)
def test_what_was_asked_for_is_done(tmp_path: Path, trained: list[int], validated: list[int], trainer: Any) -> None:
    config = run(tmp_path, trained, validated, **trainer)
    require_all_steps(config, facts(config, tmp_path), COMMAND)


def refusal(config: DictConfig, folder: Path, overrides: list[str] = COMMAND) -> str:
    with pytest.raises(ShortfallError) as error:
        require_all_steps(config, facts(config, folder), overrides)
    return str(error.value)


def test_epochs_that_are_over_before_the_steps(tmp_path: Path) -> None:
    said = refusal(run(tmp_path, [1, 2], [0]), tmp_path)
    assert said == (
        "the run ended after 2 of 4 steps: trainer.total_epochs=1 pass over its data is no more. No checkpoint was "
        "saved, so that it begins again. To go on: python -m drpo_verl.train experiment=cpu_tiny "
        "trainer.total_training_steps=4 trainer.total_epochs=2"
    )


def test_it_goes_on_from_its_own_checkpoint_only(tmp_path: Path) -> None:
    config = run(tmp_path, [1, 2, 3, 4, 5, 6], total_training_steps=10, total_epochs=3)
    checkpoint(tmp_path, 6)
    command = ["trainer.resume_mode=disable", "experiment=cpu_tiny", "+trainer.total_epochs=3"]
    said = refusal(config, tmp_path, command)
    assert "after 6 of 10 steps: trainer.total_epochs=3 passes over its data are no more" in said
    assert said.endswith(
        "There is a checkpoint of step 6. To go on: python -m drpo_verl.train experiment=cpu_tiny "
        "trainer.total_epochs=5 trainer.resume_mode=auto"
    )
    os.utime(tmp_path / ENVIRONMENT_FILE, (2e9, 2e9))  # the checkpoint is an earlier run's
    assert "No checkpoint was saved" in refusal(config, tmp_path, command)
    config.trainer.resume_mode = "auto"  # and the run has gone on from it
    assert "There is a checkpoint of step 6" in refusal(config, tmp_path, command)


@pytest.mark.parametrize("noted", [2, 7])
def test_a_note_of_a_step_without_its_folder_is_no_checkpoint(tmp_path: Path, noted: int) -> None:
    config = run(tmp_path, [1, 2])
    checkpoint(tmp_path, 2, noted=noted)
    assert ("There is a checkpoint of step 2" in refusal(config, tmp_path)) == (noted == 2)


@pytest.mark.parametrize("validated", [[], [4]])
def test_a_checkpoint_behind_which_nothing_is_left(tmp_path: Path, validated: list[int]) -> None:
    config = run(tmp_path, [], validated, resume_mode="auto")
    checkpoint(tmp_path, 4)
    said = refusal(config, tmp_path)
    assert "the run trained nothing: it went on from the checkpoint of step 4, behind which no step is left" in said
    assert said.endswith("experiment=cpu_tiny trainer.total_epochs=1 trainer.total_training_steps=8")


def test_val_only_that_verl_does_not_read(tmp_path: Path) -> None:
    # It trains then, and may end early as any run.
    config = run(tmp_path, [1, 2], val_only=True, val_before_train=False)
    assert "after 2 of 4 steps" in refusal(config, tmp_path)


def test_a_metrics_file_with_a_broken_line_is_no_failure_of_the_run(tmp_path: Path) -> None:
    config = run(tmp_path, [1, 2, 3, 4])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "da{"step"\n{"step": 5')
    require_all_steps(config, facts(config, tmp_path), COMMAND)

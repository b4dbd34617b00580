"""The environment that a run's processes get, and what is refused before anything is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from drpo_verl.configuration import search_path
from drpo_verl.train import export_environment


@pytest.mark.parametrize("experiment", [[], ["experiment=cpu_tiny"]])
def test_wandb_writes_into_the_folder_of_the_run_unless_told_otherwise(
    experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_path.register()
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        config = compose("train", [*experiment, f"run.dir={tmp_path}"])
    for already, expected in ((None, str(tmp_path)), ("/elsewhere", "/elsewhere")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", {} if already is None else {"WANDB_DIR": already})
            export_environment(config)
            assert os.environ["WANDB_DIR"] == expected
        of_the_workers = config.ray_kwargs.ray_init.runtime_env.env_vars
        assert of_the_workers["WANDB_DIR"] == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=drpo/qwen3_4", "experiment='drpo/qwen3_4' does not exist"),
        ("trainer.total_trainings_steps=3", "Did you mean trainer.total_training_steps"),
    ],
)
def test_a_misspelt_name_is_an_error_before_anything_is_made(override: str, message: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "drpo_verl.train", override], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        check=False, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.startswith("error: ") and message in run.stderr and len(run.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_plugin_that_is_switched_off_is_an_error_before_ray_starts(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "drpo_verl.train", "experiment=cpu_tiny", "run.prefork=false", "run.dir=run"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "VERL_USE_EXTERNAL_PLUGINS": "another,none"},
    )  # fmt: skip
    assert run.returncode == 1
    assert "error: VERL_USE_EXTERNAL_PLUGINS='another,none' keeps verl from loading drpo-verl" in run.stderr
    assert "VERL_USE_EXTERNAL_PLUGINS=drpo_verl." in run.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"train.log", ".hydra"}


def test_options_of_hydra_itself_still_reach_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drpo_verl.train", "experiment=cpu_tiny", "--cfg", "job", "--package", "run"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.check_output(command, cwd=tmp_path, text=True, timeout=120, env=environment)
    assert "updates_per_rollout: 2" in shown

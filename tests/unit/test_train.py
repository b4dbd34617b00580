"""The environment that a run's processes get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from drpo_verl.integration import search_path
from drpo_verl.train import _shown, export_environment


@pytest.mark.parametrize("experiment", [[], ["experiment=cpu_tiny"]])
def test_wandb_writes_into_the_runs_folder_unless_told_otherwise(
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


def test_a_path_is_shown_even_when_the_current_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "job"
    here.mkdir()
    monkeypatch.chdir(here)
    assert _shown(here / "outputs" / "train.log") == "outputs/train.log"
    here.rmdir()  # what Ray does to a submitted job's
    assert _shown(here / "outputs" / "train.log") == str(here / "outputs" / "train.log")

"""Recipes: what a script runs, what a job takes along, and what a README says."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from ray.runtime_env import RuntimeEnv

from drpo_verl.configuration import search_path

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.parent for path in (ROOT / "recipes").glob("*/README.md"))
SETTINGS = {
    "drpo_qwen3_30b_a3b": ("bf16", "fp8_rollout", "fp8_e2e", "qwen3_5"),
    "dppo_qwen3_30b_a3b": ("base", "base_r3", "thinking", "verl_script"),
}
RUNS = [(recipe, setting) for recipe in RECIPES for setting in SETTINGS.get(recipe.name, ("",))]


def _script(recipe: Path) -> Path:
    (script,) = recipe.glob("run_*.sh")
    return script


def _overrides(recipe: Path, *arguments: str, **variables: str) -> list[str]:
    """What the script would give to ``python -m drpo_verl.train``."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": "echo"} | {k: v for k, v in variables.items() if v}
    run = subprocess.run(
        ["bash", _script(recipe), *arguments], env=environment, cwd="/", capture_output=True, text=True, check=True
    )
    module, *overrides = run.stdout.split()[1:]
    assert module == "drpo_verl.train"
    return overrides


def _compose(overrides: list[str]) -> DictConfig:
    search_path.register()
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        return compose("train", overrides)


def test_there_are_recipes() -> None:
    assert {path.name for path in RECIPES} == {
        "cpu_tiny", "drpo_qwen3_4b", "drpo_qwen3_30b_a3b", "drpo_r1d_1_5b",
        "dppo_qwen3_30b_a3b", "dppo_qwen3_8b", "dppo_lora", "dppo_sanity_r1d",
    }  # fmt: skip


@pytest.mark.parametrize(("recipe", "setting"), RUNS, ids=lambda value: getattr(value, "name", value))
def test_a_recipe_is_an_experiment_that_composes(recipe: Path, setting: str) -> None:
    config = _compose(_overrides(recipe, SETTING=setting, SHARED_DIR="/shared"))
    assert config.run.dir == f"/shared/runs/{config.trainer.experiment_name}"
    variables = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert variables.VERL_USE_EXTERNAL_MODULES == "drpo_verl.plugin"
    assert variables.HF_HOME == "/shared/huggingface"
    assert (recipe.name == "cpu_tiny") == (config.trainer.device == "cpu")
    family = recipe.name.split("_")[0]
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode.startswith({"cpu": "drpo"}.get(family, family))


def test_variables_are_overrides_and_arguments_have_the_last_word() -> None:
    recipe = ROOT / "recipes" / "cpu_tiny"
    variables = {
        "METHOD": "dppo_binary_kl", "RUN_NAME": "mine", "RESUME_MODE": "auto", "TOTAL_STEPS": "7", "SAVE_FREQ": "3",
        "TEST_FREQ": "2", "MODEL_PATH": "/models/tiny",
    }  # fmt: skip
    config = _compose(_overrides(recipe, "trainer.save_freq=5", "data.seed=3", **variables))
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "dppo_binary_kl"
    assert (config.run.dir, config.trainer.resume_mode) == ("outputs/mine", "auto")
    assert (config.trainer.total_training_steps, config.trainer.save_freq, config.trainer.test_freq) == (7, 5, 2)
    assert (config.actor_rollout_ref.model.path, config.data.seed) == ("/models/tiny", 3)


def test_an_unknown_setting_is_refused() -> None:
    for recipe in SETTINGS:
        with pytest.raises(subprocess.CalledProcessError) as error:
            _overrides(ROOT / "recipes" / recipe, SETTING="fp4")
        assert "SETTING=fp4: expected" in error.value.stderr


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_job_takes_the_checkout_along_and_no_secret(recipe: Path) -> None:
    specification = yaml.safe_load((recipe / "job.yaml").read_text())
    RuntimeEnv(**specification | {"working_dir": str(ROOT)})  # Ray's own validation
    assert specification["working_dir"] == "."
    assert not [name for name in specification["env_vars"] if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]
    assert ("VERL_PLATFORM" in specification["env_vars"]) == (recipe.name == "cpu_tiny")


def test_what_is_left_behind_is_not_what_a_run_needs() -> None:
    ignored = [line for line in (ROOT / ".rayignore").read_text().splitlines() if line and not line.startswith("#")]
    assert {"/tests/", "/docs/"} <= set(ignored)
    assert not {"/drpo_verl/", "/hydra_configs/", "/recipes/"} & set(ignored)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_readme_names_what_is_there(recipe: Path) -> None:
    text = (recipe / "README.md").read_text()
    script = _script(recipe)
    assert script.stat().st_mode & stat.S_IXUSR
    assert f"recipes/{recipe.name}/{script.name}" in text and f"recipes/submit.sh {recipe.name} " in text
    for setting in SETTINGS.get(recipe.name, ()):
        assert f"| `{setting}` |" in text
    for link in re.findall(r"\]\(([^)h][^)]*)\)", text):
        assert (recipe / link).exists(), link
    if recipe.name != "cpu_tiny":
        for said in ("Untested on a GPU", "rehearsal=cpu", "drpo-verl check", "drpo-verl data", "ray job stop"):
            assert said in text, said


def test_submit_sorts_its_arguments(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    ray.chmod(0o755)
    run = subprocess.run(
        [ROOT / "recipes" / "submit.sh", "cpu_tiny", "METHOD=drpo", "--no-wait", "data.seed=3", "SHARED_DIR=/a b"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    job, submit, specification, identifier, *rest = run.stdout.splitlines()
    assert (job, submit, specification) == ("job", "submit", "--runtime-env=recipes/cpu_tiny/job.yaml")
    assert re.fullmatch(r"--submission-id=cpu_tiny-\d{8}-\d{6}", identifier)
    assert rest == [
        "--no-wait", "--", "env", "METHOD=drpo", "SHARED_DIR=/a b", "bash", "recipes/cpu_tiny/run_tiny_fsdp2.sh",
        "data.seed=3",
    ]  # fmt: skip


def test_submit_names_the_recipes_that_there_are() -> None:
    run = subprocess.run([ROOT / "recipes" / "submit.sh", "nope"], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "no recipe 'nope'" in run.stderr and "drpo_qwen3_4b" in run.stderr

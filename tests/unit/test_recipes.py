"""Recipes: what the launch script runs, what a job takes along, and what the README says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from ray.runtime_env import RuntimeEnv

from drpo_verl.configuration import search_path

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
FOLDER = search_path.config_dir() / "experiment"
SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def _overrides(*arguments: str, **variables: str) -> list[str]:
    """What the launch script gives to ``python -m drpo_verl.train``."""
    run = subprocess.run(
        ["bash", RECIPES / "launch.sh", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHON": "echo"} | variables, cwd="/", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    module, *overrides = run.stdout.split()[1:]
    assert module == "drpo_verl.train"
    return overrides


def _compose(overrides: list[str]) -> DictConfig:
    search_path.register()
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        return compose("train", overrides)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_can_be_launched(experiment: str) -> None:
    config = _compose(_overrides(experiment, SHARED_DIR="/shared"))
    assert config.run.dir == f"/shared/runs/{config.trainer.experiment_name}"
    assert config.trainer.experiment_name.split("-")[0] == experiment.replace("/", "_")
    variables = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert variables.VERL_USE_EXTERNAL_MODULES == "drpo_verl.plugin"
    assert variables.HF_HOME == "/shared/huggingface"
    # On CPUs the run brings the platform itself; a job's specification is the same for all.
    assert variables.get("VERL_PLATFORM") == ("cpu" if experiment.startswith("cpu_") else None)
    assert config.run.method == ("dppo_binary_tv" if experiment.startswith("dppo/") else "drpo")


def test_a_private_plugin_is_beside_ours() -> None:
    config = _compose(_overrides("cpu_tiny", VERL_USE_EXTERNAL_MODULES="own_methods"))
    variables = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert variables.VERL_USE_EXTERNAL_MODULES == "drpo_verl.plugin,own_methods"


def test_variables_are_overrides_and_arguments_have_the_last_word() -> None:
    variables = {
        "METHOD": "dppo_binary_kl", "RUN_NAME": "mine", "RESUME_MODE": "auto", "TOTAL_STEPS": "7", "SAVE_FREQ": "3",
        "TEST_FREQ": "2", "MODEL_PATH": "/models/tiny",
    }  # fmt: skip
    config = _compose(_overrides("cpu_tiny", "trainer.save_freq=5", "data.seed=3", **variables))
    assert config.run.method == "dppo_binary_kl"
    assert (config.run.dir, config.trainer.resume_mode) == ("outputs/mine", "auto")
    assert (config.trainer.total_training_steps, config.trainer.save_freq, config.trainer.test_freq) == (7, 5, 2)
    assert (config.actor_rollout_ref.model.path, config.data.seed) == ("/models/tiny", 3)
    assert _compose(_overrides("dppo/qwen3_8b", "method=spo")).run.method == "spo"
    assert _compose(_overrides("dppo/qwen3_8b", METHOD="drpo", HARDWARE="1x8")).trainer.nnodes == 1


@pytest.mark.parametrize("arguments", [(), ("trainer.save_freq=5",)])
def test_launch_wants_an_experiment_first(arguments: tuple[str, ...]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        _overrides(*arguments)
    assert error.value.returncode == 2 and "usage: recipes/launch.sh EXPERIMENT" in error.value.stderr


def test_a_job_takes_the_checkout_along_and_no_secret() -> None:
    specification = yaml.safe_load((RECIPES / "job.yaml").read_text())
    RuntimeEnv(**specification | {"working_dir": str(ROOT)})  # Ray's own validation
    assert specification["working_dir"] == "."
    assert not [name for name in specification["env_vars"] if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]


def test_what_is_left_behind_is_not_what_a_run_needs() -> None:
    ignored = [line for line in (ROOT / ".rayignore").read_text().splitlines() if line and not line.startswith("#")]
    assert {"/tests/", "/docs/"} <= set(ignored)
    assert not {"/drpo_verl/", "/hydra_configs/", "/recipes/"} & set(ignored)


def test_the_readme_names_every_experiment_and_what_is_there() -> None:
    text = (RECIPES / "README.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| `d[rp]po/", line)]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(named) == [name for name in EXPERIMENTS if "/" in name]
    compared = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[3])}
    assert compared <= {path.stem for path in (search_path.config_dir() / "method").glob("*.yaml")}
    for link in re.findall(r"\]\(([^)h][^)]*)\)", text):
        assert (RECIPES / link).exists(), link


def test_commands_in_the_documentation_name_experiments_that_there_are() -> None:
    commands: list[str] = []
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.md"), *ROOT.glob("docker/*.md")):
        commands += re.findall(r"recipes/(?:submit|launch)\.sh ([a-z][\w/]*)", page.read_text())
    assert len(commands) > 10
    assert set(commands) <= set(EXPERIMENTS)


@pytest.mark.parametrize("script", ["launch.sh", "submit.sh"])
def test_a_script_can_be_run_and_shellcheck_finds_nothing(script: str) -> None:
    assert (RECIPES / script).stat().st_mode & stat.S_IXUSR
    if SHELLCHECK is None:
        pytest.skip("shellcheck is not installed")
    run = subprocess.run([SHELLCHECK, RECIPES / script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def _submit(folder: Path, ray: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the submit script with a stand-in for the ``ray`` command, which is what would talk to a cluster."""
    for name, script in (("ray", ray), ("sleep", "")):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return subprocess.run(
        [RECIPES / "submit.sh", *arguments], env={"PATH": f"{folder}:{os.environ['PATH']}"} | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_submit_sorts_its_arguments(tmp_path: Path) -> None:
    arguments = ("dppo/qwen3_8b", "METHOD=drpo", "--no-wait", "data.seed=3", "SHARED_DIR=/a b")
    run = _submit(tmp_path, 'printf "%s\\n" "$@"', *arguments)
    assert run.returncode == 0, run.stderr
    job, submit, specification, identifier, *rest = run.stdout.splitlines()
    assert rest.pop(3).startswith("DRPO_VERL_RESUME_COMMAND=")
    assert (job, submit, specification) == ("job", "submit", "--runtime-env=recipes/job.yaml")
    assert re.fullmatch(r"--submission-id=dppo_qwen3_8b-\d{8}-\d{6}", identifier)
    assert rest == [
        "--no-wait", "--", "env", "METHOD=drpo", "SHARED_DIR=/a b", "bash", "recipes/launch.sh", "dppo/qwen3_8b",
        "data.seed=3",
    ]  # fmt: skip


def test_submit_tells_the_run_how_it_is_resumed(tmp_path: Path) -> None:
    arguments = ("cpu_tiny", "METHOD=drpo", "--submission-id=first", "trainer.resume_mode=disable", "SHARED_DIR=/a b")
    run = _submit(tmp_path, 'printf "%s\\n" "$@"', *arguments)
    (command,) = [line for line in run.stdout.splitlines() if line.startswith("DRPO_VERL_RESUME_COMMAND=")]
    assert shlex.split(command.partition("=")[2]) == [
        str(RECIPES / "submit.sh"), "cpu_tiny", "METHOD=drpo", "SHARED_DIR=/a b", "trainer.resume_mode=auto",
    ]  # fmt: skip


def test_launch_tells_the_run_how_it_is_resumed(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$DRPO_VERL_RESUME_COMMAND"\n')
    python.chmod(0o755)
    variables = {"PATH": os.environ["PATH"], "PYTHON": str(python), "METHOD": "drpo", "RUN_NAME": "a b"}
    command = [str(RECIPES / "launch.sh"), "cpu_tiny", "data.seed=3", "trainer.resume_mode=disable"]
    shown = subprocess.check_output(command, env=variables, cwd="/", text=True)
    expected = ["env", "METHOD=drpo", "RUN_NAME=a b", *command[:3], "trainer.resume_mode=auto"]
    assert shlex.split(shown) == expected
    # A job has the command that submits it again.
    shown = subprocess.check_output(command, env=variables | {"DRPO_VERL_RESUME_COMMAND": "submit"}, cwd="/", text=True)
    assert shown == "submit\n"


@pytest.mark.parametrize("name", [(), ("nope",), ("drpo_qwen3_4b",), ("drpo",)])
def test_submit_names_the_experiments_that_there_are(name: tuple[str, ...]) -> None:
    run = subprocess.run([RECIPES / "submit.sh", *name], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and f"no experiment '{''.join(name)}'" in run.stderr
    assert sorted(run.stderr.splitlines()[1:]) == EXPERIMENTS


_NO_AGENT = "Request failed with status code 500: No available agent to submit job, please try again later.."


def test_submit_waits_for_a_cluster_that_has_just_started(tmp_path: Path) -> None:
    ray = f'echo x >> {tmp_path}/calls; [ $(wc -l < {tmp_path}/calls) = 3 ] || {{ echo "{_NO_AGENT}" >&2; exit 1; }}'
    run = _submit(tmp_path, f"{ray}; echo followed", "cpu_tiny")
    assert (run.returncode, run.stdout) == (0, "followed\n")
    assert run.stderr.count("Trying again, for up to 120 s.") == 2


@pytest.mark.parametrize(("message", "seconds"), [(_NO_AGENT, "0"), ("Job 'x' failed", "120")])
def test_submit_does_not_repeat_what_fails_otherwise_or_for_too_long(
    message: str, seconds: str, tmp_path: Path
) -> None:
    ray = f'echo x >> {tmp_path}/calls; echo "{message}" >&2; exit 3'
    run = _submit(tmp_path, ray, "cpu_tiny", AGENT_SECONDS=seconds)
    assert run.returncode == 3 and run.stderr == f"{message}\n"
    assert (tmp_path / "calls").read_text() == "x\n"

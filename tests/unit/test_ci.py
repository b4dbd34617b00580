"""What runs on a push and on a commit: valid, and the same as what a developer runs by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yaml"
HOOKS = ROOT / ".pre-commit-config.yaml"


def _tool(name: str, *arguments: str | Path) -> None:
    """Run a command of this environment; skipped where it is not installed."""
    tool = Path(sys.executable).parent / name
    if not tool.exists():
        pytest.skip(f"{name} is not installed")
    run = subprocess.run([tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    return dict(yaml.safe_load(WORKFLOW.read_text())["jobs"])


def _commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_the_workflow_is_valid(schema: str) -> None:
    _tool("check-jsonschema", "--builtin-schema", schema, WORKFLOW)


def test_the_unit_tier_runs_on_every_push_with_each_python(jobs: dict[str, Any]) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', pyproject)
    assert jobs["unit"]["strategy"]["matrix"]["python"] == classified == ["3.10", "3.11", "3.12", "3.13"]
    assert jobs["unit"]["if"] == "github.event_name == 'push'"
    assert _commands(jobs["unit"])[-1] == "make test-unit PYTHON=python${{ matrix.python }}"


def test_everything_runs_within_the_limit(jobs: dict[str, Any]) -> None:
    assert _commands(jobs["everything"]) == [".ci/run"] and jobs["everything"]["timeout-minutes"] == 90
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_scripts_pass_shellcheck() -> None:
    _tool("shellcheck", ROOT / ".ci" / "run", ROOT / "requirements" / "environment.sh")


def test_the_hooks_are_the_linters_of_make_lint() -> None:
    _tool("pre-commit", "validate-config", HOOKS)
    (repository,) = yaml.safe_load(HOOKS.read_text())["repos"]
    # Nothing is built: the environment's mark counts as newer than everything.
    make = subprocess.run(
        ["make", "--dry-run", "--assume-old=.venv/.installed", "lint", "VENV=.venv"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    hooks = [hook["entry"] for hook in repository["hooks"]]
    assert hooks == [line for line in make.stdout.splitlines() if line.startswith(".venv/bin/")][-len(hooks) :]

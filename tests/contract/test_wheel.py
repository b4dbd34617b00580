"""The wheel is found by verl and by Hydra as a checkout is, and the source distribution builds the same wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPOSE = """
import sys
import verl, verl.trainer
from pathlib import Path
from hydra import compose, initialize_config_dir
import drpo_verl
with initialize_config_dir(str(Path(verl.trainer.__file__).parent / "config"), version_base=None):
    config = compose("ppo_trainer", ["actor_rollout_ref.rollout.name=vllm", "+method=dppo_binary_kl"])
print(drpo_verl.__file__, config.actor_rollout_ref.actor.policy_loss.delta)
"""


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, capture_output=True, timeout=400)


def _build_wheel(source: Path, folder: Path) -> Path:
    _run("pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("drpo_verl-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return _build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    _run("hatchling", "build", "--target", "sdist", "--directory", str(tmp_path))
    (sdist,) = tmp_path.glob("drpo_verl-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("hydra_configs/method/drpo.yaml", "tests/conftest.py", "requirements/cpu.txt", "Makefile", "LICENSE"):
        assert name in names, name
    assert not [name for name in names if name.startswith(("outputs/", ".venv", ".git/"))]

    again = zipfile.ZipFile(_build_wheel(sdist, tmp_path))
    first = zipfile.ZipFile(wheel)
    assert sorted(again.namelist()) == sorted(first.namelist())
    for name in first.namelist():
        assert again.read(name) == first.read(name), name


def test_the_wheel_carries_the_configuration_and_the_entry_points(wheel: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("hydra_configs/method/drpo.yaml", "py.typed", "report/page.html.jinja"):
        assert f"drpo_verl/{name}" in names, name
    assert "hydra_plugins/drpo_verl_search_path.py" in names
    assert not any(name.startswith(("tests/", "hydra_configs/")) for name in names)

    site = tmp_path / "site"
    _run("pip", "install", "--no-deps", "--target", str(site), str(wheel))
    run = subprocess.run(
        [sys.executable, "-c", COMPOSE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == f"{site / 'drpo_verl' / '__init__.py'} 0.05"

"""The environment that `make setup` makes: with which interpreter, from which pins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

NOT_INSTALLED = "exit(127)"
NO_VENV = "importlib.util.find_spec = lambda name: None if name == 'ensurepip' else name"
NO_LIBNUMA = "ctypes.CDLL = open"  # raises OSError too


def _interpreter(path: Path, version: str, tweak: str = "pass") -> None:
    """A real interpreter that takes itself for another version, and writes down how it would make an environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    major, minor = version.split(".")
    program = f"import ctypes, importlib.util, sys; sys.version_info = {major}, {minor}; {tweak}; exec(sys.argv[1])"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{program}" "$2"\necho "$0 $*" > {path.parent}/made\n'
    )
    path.chmod(0o755)


def _make(bin_folder: Path, folder: Path, *chosen: str) -> tuple[int, str, str]:
    """Exit code, what was said, and the command that made the environment (without the folder of interpreters)."""
    run = subprocess.run(
        [REQUIREMENTS / "environment.sh", folder, *chosen],
        env={"PATH": str(bin_folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    made = bin_folder / "made"
    command = made.read_text().strip().replace(f"{bin_folder}/", "") if made.exists() else ""
    return run.returncode, run.stderr, command


@pytest.mark.parametrize(
    ("versions", "taken"),
    [
        (("3.10", "3.11", "3.12", "3.13"), "python3.11"),
        (("3.10", "3.12", "3.13"), "python3.12"),
        (("3.10", "3.13"), "python3.13"),
        (("3.10",), "python3.10"),
    ],
)
def test_the_first_that_is_there_is_taken(tmp_path: Path, versions: tuple[str, ...], taken: str) -> None:
    for version in versions:
        _interpreter(tmp_path / "bin" / f"python{version}", version)
    assert _make(tmp_path / "bin", tmp_path / "env") == (0, "", f"{taken} -m venv --clear {tmp_path / 'env'}")


def test_one_that_does_not_run_or_is_not_whole_is_passed_over(tmp_path: Path) -> None:
    _interpreter(tmp_path / "bin" / "python3.11", "3.11", NOT_INSTALLED)
    _interpreter(tmp_path / "bin" / "python3.12", "3.12", NO_VENV)
    _interpreter(tmp_path / "bin" / "python3", "3.13")
    code, said, command = _make(tmp_path / "bin", tmp_path / "env")
    assert (code, said, command.split()[0]) == (0, "", "python3")


def test_the_chosen_one_wins(tmp_path: Path) -> None:
    for version in ("3.11", "3.13"):
        _interpreter(tmp_path / "bin" / f"python{version}", version)
    assert _make(tmp_path / "bin", tmp_path / "env", "python3.13")[2].startswith("python3.13 ")
    code, said, command = _make(tmp_path / "other", tmp_path / "env", "python3.12")
    assert code == 1 and said.startswith("error: python3.12 does not run: ") and not command


@pytest.mark.parametrize(
    ("version", "tweak", "words"),
    [
        ("3.12", NO_VENV, "python3 has no module venv: sudo apt-get install python3.12-venv"),
        ("3.12", NO_LIBNUMA, "python3 finds no libnuma.so.1, which vLLM needs: sudo apt-get install libnuma1"),
        ("3.9", "pass", "python3 is Python 3.9; the stack needs 3.10 to 3.13: install one"),
        ("3.14", "pass", "python3 is Python 3.14; the stack needs 3.10 to 3.13: install one"),
        ("3.12", "import platform; platform.machine = lambda: 'aarch64'", "the stack is for Linux on x86-64"),
        ("3.12", NOT_INSTALLED, "does not run: sudo apt-get install python3 python3-venv"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, version: str, tweak: str, words: str) -> None:
    _interpreter(tmp_path / "bin" / "python3", version, tweak)
    code, said, command = _make(tmp_path / "bin", tmp_path / "env")
    assert (code, command) == (1, "")
    assert said.startswith("error: ") and said.count("\n") == 1 and words in said


def test_an_environment_of_another_version_is_made_anew(tmp_path: Path) -> None:
    _interpreter(tmp_path / "bin" / "python3.12", "3.12")
    _interpreter(tmp_path / "env" / "bin" / "python", "3.12")
    assert "--clear" not in _make(tmp_path / "bin", tmp_path / "env")[2]
    _interpreter(tmp_path / "env" / "bin" / "python", "3.11")
    assert "--clear" in _make(tmp_path / "bin", tmp_path / "env")[2]


def _requirements(name: str) -> list[Requirement]:
    lines = (line.partition(" #")[0].strip() for line in (REQUIREMENTS / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _for_python(requirements: list[Requirement], python: str) -> dict[str, Requirement]:
    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    return {
        canonicalize_name(requirement.name): requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_what_is_asked_for_in_one_version_each(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    lock = _requirements("cpu.txt")
    names = [canonicalize_name(pin.name) for pin in lock if pin.marker is None or pin.marker.evaluate(environment)]
    assert len(names) == len(set(names))
    pins = _for_python(lock, python)
    for name, asked in _for_python(_requirements("cpu.in"), python).items():
        (pin,) = pins[name].specifier
        assert pin.operator == "==" and asked.specifier.contains(pin.version), name
    excluded = {canonicalize_name(requirement.name) for requirement in _requirements("excluded.txt")}
    assert excluded and not excluded & set(names)

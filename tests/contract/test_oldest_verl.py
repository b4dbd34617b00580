"""The oldest supported verl: its seams, its entry point, its logger and its losses pass the tests of the installed one.

What its actor computes is compared in test_actor_ranks.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from overlay import OLDEST_VERL, overlay
from packaging.version import Version

from drpo_verl.seams import SUPPORTED_VERL

ROOT = Path(__file__).parents[2]
# One process for all of them, but for those that start processes.
PYTEST = """
import sys
import pytest

status = pytest.main(["-q", "-p", "no:cacheprovider", "-k", sys.argv[2], *sys.argv[3:]])
import verl

assert verl.__version__ == sys.argv[1], verl.__version__
sys.exit(status)
"""
# Not those that start processes, nor each rule of the check once more.
SELECTED = "not command_line and not sources_that_are and not can_not_work_with_is_refused"
TESTS = [
    "tests/contract/test_seams.py", "tests/contract/test_verl_entry_point.py", "tests/contract/test_tracking.py",
    "tests/unit/adapters",
]  # fmt: skip


def test_it_is_the_one_that_is_installed_for_the_tests() -> None:
    (bound,) = (Version(each.version) for each in SUPPORTED_VERL if each.operator == ">=")
    assert bound == Version(OLDEST_VERL)


def test_the_tests_of_the_installed_one_pass() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join([str(overlay(f"verl-{OLDEST_VERL}")), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", PYTEST, OLDEST_VERL, SELECTED, *TESTS],
        cwd=ROOT, env=environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None and int(passed[1]) > 200

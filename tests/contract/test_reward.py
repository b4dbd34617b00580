"""The reward of mathematics works where verl computes it: in the threads of a Ray worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def test_in_a_ray_worker() -> None:
    folder = Path("/tmp") / f"dv-reward-{os.getpid()}"  # short: Ray's socket paths have a limit
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # A node address of 127.0.0.1, as runs on the CPU have it.
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        run = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("reward_worker.py")), str(folder)],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert run.returncode == 0, run.stderr[-4000:]
    # Half is half, two answers never end, and the others are scored meanwhile and afterwards.
    assert json.loads(run.stdout.splitlines()[-1]) == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]

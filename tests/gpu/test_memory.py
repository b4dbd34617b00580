"""The check's estimate of an update's memory against what an update takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_an_update_takes_what_the_check_says(tmp_path: Path, device: str) -> None:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("memory_step.py"), device, tmp_path],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 0, f"{process.stdout[-2000:]}{process.stderr[-4000:]}"
    figures = json.loads(process.stdout.strip().splitlines()[-1])
    assert figures["estimated"] > 0
    if device == "cpu":
        assert figures["measured"] is None
    else:
        assert figures["measured"] == pytest.approx(figures["estimated"], rel=0.15)

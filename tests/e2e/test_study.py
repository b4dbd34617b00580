"""A study of real runs: interrupted, resumed, and read back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from drpo_verl.study.execute import OUTCOME_FILE

STUDY = Path(__file__).parents[2] / "studies" / "smoke.yaml"


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "drpo_verl.cli", "study", str(STUDY), "--runs", str(folder)]


def test_a_study_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "smoke"
    made, under_way = folder / "fp32-drpo-seed1" / OUTCOME_FILE, folder / "fp32-surrogate-seed1"
    with (tmp_path / "first.txt").open("w") as output:
        # Background jobs of a shell ignore Ctrl-C, and so would what they start.
        command = ["env", "--default-signal=INT", *_command(tmp_path)]
        first = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 600
        while not (made.exists() and under_way.exists()) and time.monotonic() < deadline:
            assert first.poll() is None, (tmp_path / "first.txt").read_text()
            time.sleep(0.5)
        time.sleep(3)
        os.kill(first.pid, signal.SIGINT)
        assert first.wait(120) != 0
    assert not (under_way / OUTCOME_FILE).exists()
    before = made.stat().st_mtime

    second = subprocess.run(_command(tmp_path), capture_output=True, text=True, timeout=900, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "4 runs, 3 to be made now" in second.stdout and made.stat().st_mtime == before
    runs = pq.read_table(folder / "runs.parquet").to_pylist()
    assert [run["status"] for run in runs] == ["finished"] * 4, runs
    steps = pq.read_table(folder / "steps.parquet").to_pylist()
    assert len(steps) == 8
    mismatch = {
        name: max(step["inference_mismatch/abs_prob_diff_mean"] for step in steps if step["mismatch"] == name)
        for name in ("fp32", "fp8_kv")
    }
    assert mismatch["fp32"] < 1e-4 and mismatch["fp8_kv"] > 1e-3

"""Nothing of a run is left when its driver is gone, however it has ended, and nothing else is touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from drpo_verl.launch import processes
from drpo_verl.launch.cleanup import SCAN_SECONDS

DRIVER = Path(__file__).with_name("driver.py")


def _gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("how", ["killed", "said", "orderly"])
def test_what_a_driver_leaves_is_cleared_away(how: str, tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    kept = Path("/dev/shm") / f"drpo-verl-test-{os.getpid()}"
    kept.write_text("of somebody else")
    try:
        with (tmp_path / "output.txt").open("w") as errors:
            driver = subprocess.Popen(
                [sys.executable, DRIVER, tmp_path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            )  # fmt: skip
            assert driver.stdout is not None
            left, semaphore, temporary = driver.stdout.readline().split()
            assert not _gone(int(left)) and Path(semaphore).exists() and Path(temporary).exists()
            time.sleep(SCAN_SECONDS + 1)
            for child in psutil.Process(driver.pid).children(recursive=True):
                if child.pid != int(left):
                    child.terminate()  # as `ray job stop` does with a driver's children
            driver.communicate("\n", timeout=60)
        assert driver.returncode == {"killed": -9, "said": 3, "orderly": 0}[how]
        deadline = time.monotonic() + 30
        while Path(temporary).exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert _gone(int(left)) and not Path(semaphore).exists() and not Path(temporary).exists()
        assert bystander.poll() is None and kept.exists()
    finally:
        bystander.kill()
        bystander.wait()
        kept.unlink()
    output = (tmp_path / "output.txt").read_text()
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    if how == "killed":  # nobody else can say it
        assert said == [
            "error: the run's own process (drpo_verl.train) was killed or crashed, before the end of step 1. No "
            "checkpoint was saved (trainer.save_freq), so that this starts anew: begin again"
        ]
        assert json.loads((tmp_path / "summary.json").read_text())["ended"]["steps"] == 0
    else:
        assert said == []
    # What Ray's own processes have logged is kept of a run that ended early.
    assert (tmp_path / "ray_logs" / "raylet.out").exists() is (how != "orderly")


def test_a_stopped_process_is_told_from_one_that_runs() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        time.sleep(0.5)  # until it is itself, and not yet a copy of this process
        assert processes.stopped([process.pid]) == [] and processes.title(process.pid) == "sleep 1000"
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        assert processes.stopped([process.pid, 2**22 + 1]) == [process.pid]
    finally:
        process.kill()
        process.wait()
    assert processes.title(process.pid) == ""

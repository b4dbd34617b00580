"""What a run does when it can not write, and what a checkpoint is worth that was cut short."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import ENDLESS, Chain, LiveRun, Times, live, wait_for_end

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB, which two checkpoints of the tiny policy fill."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", tmp_path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system of a small size can be mounted here: {mounted.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def _fill(folder: Path, leave: int) -> None:
    """Leave only so many bytes of the folder's file system, into which the run goes on writing meanwhile."""
    with (folder / "filling").open("wb") as file:
        while (size := shutil.disk_usage(folder).free - leave) > 0:
            with contextlib.suppress(OSError):  # the run has just taken some of it: look again
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)


def test_full_while_a_checkpoint_is_written(small_disk: Path, times: Times) -> None:
    with live(small_disk / "full", *ENDLESS) as run:
        run.wait_until(lambda: run.latest_checkpoint == 2)
        _fill(small_disk, leave=10 * MIB)
        # What was written of the checkpoint leaves no room for the note in summary.json.
        end = wait_for_end(run, time.monotonic(), note=False)
        assert f"the disk of {run.folder / 'checkpoints'} is full" in end.line
        assert end.checkpoint == 2
        times.note("the disk is full while a checkpoint is written", end)
    (small_disk / "filling").unlink()
    with live(run.folder, command=end.command) as resumed:
        resumed.wait_for_steps(2)
        assert resumed.steps[0] == 3


def test_full_while_metrics_are_written(small_disk: Path, times: Times) -> None:
    with live(small_disk / "full", *ENDLESS, "trainer.save_freq=500") as run:
        run.wait_for_steps(1)
        _fill(small_disk, leave=0)
        end = wait_for_end(run, time.monotonic(), note=False)
        assert "No space left on device" in end.line
        times.note("the disk is full while metrics are written", end)


def test_a_checkpoint_is_cut_short(chain: Chain, times: Times) -> None:
    with chain.part() as run:
        _wait_for_a_checkpoint_to_begin(run)
        since = time.monotonic()
        run.process.kill()
        end = wait_for_end(run, since)
        chain.ended(end)
        times.note("the driver is killed while a checkpoint is written", end)


def _wait_for_a_checkpoint_to_begin(run: LiveRun) -> None:
    known = {*(run.folder / "checkpoints").glob("global_step_*")}
    deadline = time.monotonic() + 60
    while not {*(run.folder / "checkpoints").glob("global_step_*")} - known:
        assert time.monotonic() < deadline and run.process.poll() is None, run.explain()

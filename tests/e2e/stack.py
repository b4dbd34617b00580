"""Starting real runs of the whole stack, and what is kept of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from drpo_verl.run_folder.steps import Step, read_steps

RUN_SECONDS = 900

# The demo's policy and its RL, cut to three steps.
SHORT = (
    "experiment=cpu_tiny",
    "trainer.total_training_steps=3",
    "trainer.val_before_train=false",
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "prepare.data.n_train=64",
    "prepare.data.n_val=16",
)
MARK = "DRPO_VERL_TEST_RUN"
"""In the environment of every process of a run; the value is the run's folder."""

ONE_UPDATE = "actor_rollout_ref.actor.ppo_mini_batch_size=8"  # all samples of a step of SHORT


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, what it printed, how it ended, and what its processes listened on meanwhile."""

    folder: Path
    output: str
    returncode: int
    listening: frozenset[tuple[str, str]]

    @property
    def steps(self) -> list[Step]:
        """The training steps."""
        return [step for step in read_steps(self.folder / "metrics.jsonl") if step.step > 0]


def start(folder: Path, *overrides: str, expect_success: bool = True) -> Run:
    """Run ``python -m drpo_verl.train`` to its end, in a Ray of its own."""
    ray_folder = Path("/tmp") / f"dv-{os.getpid()}-{folder.name}"  # short: Ray's socket paths have a limit
    command = [
        sys.executable, "-m", "drpo_verl.train", *overrides, f"run.dir={folder}",
        f"trainer.experiment_name={folder.name}", f"+ray_kwargs.ray_init._temp_dir={ray_folder}",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment[MARK] = str(folder)
    environment["CXX"] = "/no/compiler"  # of which a run on a CPU has no need
    folder.mkdir(exist_ok=True)
    output = folder / "output.txt"
    listening: set[tuple[str, str]] = set()
    with output.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        deadline = time.monotonic() + RUN_SECONDS
        try:
            while process.poll() is None and time.monotonic() < deadline:
                listening |= _listening(folder)
                time.sleep(2)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            shutil.rmtree(ray_folder, ignore_errors=True)
    run = Run(folder, output.read_text(), process.returncode, frozenset(listening))
    if expect_success:
        log = folder / "train.log"
        tail = log.read_text()[-6000:] if log.exists() else ""
        assert run.returncode == 0, f"{run.output}\n--- the end of {log.name}\n{tail}"
    return run


def processes_of(folder: Path) -> list[psutil.Process]:
    """The processes of a run that are still there, whoever their parents are by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _listening(folder: Path) -> set[tuple[str, str]]:
    found = set()
    for process in processes_of(folder):
        try:
            sockets = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        found |= {
            (s.laddr.ip.removeprefix("::ffff:"), process.name()) for s in sockets if s.status == psutil.CONN_LISTEN
        }
    return found

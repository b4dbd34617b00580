"""Starting real runs of the whole stack, and what is kept of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
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
OUTPUT = "output.txt"
"""In a run's folder: what it has printed."""

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
    listening: set[tuple[str, str]] = set()
    with running(folder, *overrides, f"+ray_kwargs.ray_init._temp_dir={ray_folder}") as process:
        deadline = time.monotonic() + RUN_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            listening |= _listening(folder)
            time.sleep(2)
    shutil.rmtree(ray_folder, ignore_errors=True)
    run = Run(folder, (folder / OUTPUT).read_text(), process.returncode, frozenset(listening))
    if expect_success:
        log = folder / "train.log"
        tail = log.read_text()[-6000:] if log.exists() else ""
        assert run.returncode == 0, f"{run.output}\n--- the end of {log.name}\n{tail}"
    return run


@contextlib.contextmanager
def running(
    folder: Path, *overrides: str, command: str | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``python -m drpo_verl.train`` in a folder, with its output in ``OUTPUT`` there, and kill it at the end.

    Args:
        folder: the run's folder, whose name is the run's.
        *overrides: of its configuration.
        command: instead, a command for a shell that starts a run in this folder, ``drpo_verl.train`` being its process.
        variables: environment variables that it gets beside this process's.
    """
    arguments = [
        sys.executable, "-m", "drpo_verl.train", *overrides, f"run.dir={folder}",
        f"trainer.experiment_name={folder.name}",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        MARK: str(folder),
        "CXX": "/no/compiler",  # of which a run on a CPU has no need
        **(variables or {}),
    }
    folder.mkdir(exist_ok=True)
    with (folder / OUTPUT).open("w") as file:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"] if command else arguments,
            stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


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

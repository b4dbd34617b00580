"""The processes of a run on this machine, known by a variable in their environment, and their shared memory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from drpo_verl.configuration.sections import RUN_VARIABLE

_SHARED_MEMORY = Path("/dev/shm")
# Named semaphores and shared memory of Python's multiprocessing, and shared tensors of torch. Whatever else is there
# (a copy of a model, for example) is not the run's to remove.
_NAMES = re.compile(r"(sem\.mp-|psm_|torch_).+")
_POLL_SECONDS = 0.2
_KILL_SECONDS = 30.0  # longer than any process takes to be gone that the system can end at all


def processes_of(run: str) -> list[int]:
    """Return the process ids of the processes of a run that are alive, whoever their parents are by now.

    Args:
        run: the value of ``RUN_VARIABLE`` in their environment.
    """
    variable = f"{RUN_VARIABLE}={run}".encode()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # another user's, or gone
                if variable in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
    return found


def _state(process: int) -> str:
    """The letter of a process's state, as ``ps`` shows it; X for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def is_alive(process: int) -> bool:
    """Return whether a process has not ended; one whose parent has not asked for its exit code yet has."""
    return _state(process) not in "XZ"


def stopped(processes: Iterable[int]) -> list[int]:
    """Return those of the processes that a signal has stopped (``SIGSTOP``, a debugger) and that wait to go on."""
    return [process for process in processes if _state(process) in "Tt"]


def title(process: int) -> str:
    """Return how a process is called in ``ps``, or an empty string when it is gone."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return " ".join(words).strip()
    return ""


def shared_memory() -> set[Path]:
    """Return the semaphores and the shared memory of multiprocessing and torch that there are, whoever's they are."""
    return {file for file in _SHARED_MEMORY.iterdir() if _NAMES.fullmatch(file.name)}


def shared_memory_of(processes: Iterable[int]) -> set[Path]:
    """Return the semaphores and the shared memory of multiprocessing and torch that the processes have mapped."""
    mapped = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/maps").read_text().splitlines():
                _, separator, _ = line.partition(f" {_SHARED_MEMORY}/")
                if separator:
                    mapped.add(int(line.split()[4]))
    # By their inodes: the C library makes a semaphore under another name than the one that it has then.
    found = set()
    for file in shared_memory():
        with contextlib.suppress(OSError):
            if file.stat().st_ino in mapped:
                found.add(file)
    return found


def end_processes(run: str, patience: float) -> None:
    """Wait until a run has no processes any more, and kill those that are left when the patience is over.

    Args:
        run: the value of ``RUN_VARIABLE`` in their environment.
        patience: seconds that they get to end by themselves.
    """
    deadline = time.monotonic() + patience
    while (left := processes_of(run)) and time.monotonic() < deadline + _KILL_SECONDS:
        if time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)

"""A process beside a run that clears away what is left when the run has ended, however it has ended.

When its driver (the process of ``drpo_verl.train``) is killed, nothing of a run can clean up any more: Ray's agents
stay, and so do semaphores in ``/dev/shm``, sockets and temporary folders. The cleaning process is in a session of its
own and holds a pipe to the driver. When the driver is gone, it says so, unless the driver itself has said how the run
ended; it gives the run's processes some seconds, kills those that are left, and removes their files.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from drpo_verl.configuration.sections import RUN_VARIABLE
from drpo_verl.launch.ending import RunFacts
from drpo_verl.launch.processes import end_processes, is_alive, processes_of, shared_memory, shared_memory_of

PATIENCE_SECONDS = 10.0

RAY_LOGS = "ray_logs"
"""In the folder of a run that ended early: what Ray's own processes have logged."""

SCAN_SECONDS = 1.0
"""How often is looked whether there is other shared memory; whose it is, a process that is gone can not be asked."""

_SAID = b"said"
_LONGEST_SOCKET_PATH = 107
_RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"


@dataclass(frozen=True)
class _Run:
    """What the cleaning process has to know."""

    mark: str
    driver: int
    temporary: str
    patience: float
    facts: RunFacts


class Cleanup:
    """The cleaning process, as its driver sees it.

    Attributes:
        mark: the value of ``RUN_VARIABLE`` in the environment of every process of the run.
    """

    def __init__(self, mark: str, process: subprocess.Popen[bytes]) -> None:
        self.mark = mark
        self._process = process

    def ending_is_said(self) -> None:
        """Keep it from telling the user that the driver was killed: the run ends in another way."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it was killed itself
            self._process.stdin.write(_SAID)
            self._process.stdin.flush()


@contextlib.contextmanager
def cleaned_up_afterwards(
    facts: RunFacts, own_ray: bool | None, patience: float = PATIENCE_SECONDS
) -> Iterator[Cleanup]:
    """Have everything of a run cleared away once this process is gone; what it starts from here on is of the run.

    Args:
        facts: what is said if this process is killed.
        own_ray: whether the run starts a Ray of its own; None where Ray decides it. The temporary files of such a run
            go into a folder of its own, which is removed with them.
        patience: seconds that the run's processes may take to end by themselves after this one.
    """
    mark = secrets.token_hex(8)
    temporary = tempfile.mkdtemp(prefix="drpo-verl-") if own_ray is not False else ""
    run = _Run(mark, os.getpid(), temporary, patience, facts)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(asdict(run))],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    process.wait()  # it goes on in a child of its own
    os.environ[RUN_VARIABLE] = mark
    if temporary:
        _use_temporary_folder(temporary, for_ray=bool(own_ray))
    cleanup = Cleanup(mark, process)
    try:
        yield cleanup
    finally:
        cleanup.ending_is_said()


def _use_temporary_folder(folder: str, for_ray: bool) -> None:
    # Kept from run to run: what torch has compiled.
    user = os.environ.get("USER") or str(os.getuid())
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"torchinductor_{user}"))
    # A Ray that may be there already is found through its own folder.
    if not for_ray or len(folder + _RAY_SOCKET) > _LONGEST_SOCKET_PATH:
        os.environ.setdefault("RAY_TMPDIR", tempfile.gettempdir())
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None  # Python has looked it up already


@cache
def _descriptor(process: int) -> int | None:
    # Kernels before 5.3, and some containers, have none.
    with contextlib.suppress(OSError):
        return os.pidfd_open(process)
    return None


def _has_ended(process: int) -> bool:
    """Whether a process has ended; waits for it for ``SCAN_SECONDS``."""
    descriptor = _descriptor(process)
    if descriptor is not None:
        return bool(select.select([descriptor], [], [], SCAN_SECONDS)[0])
    time.sleep(SCAN_SECONDS)
    return not is_alive(process)


def _main(run: _Run) -> None:
    of_run: set[Path] = set()
    last_seen: set[Path] = set()
    while not _has_ended(run.driver):
        # What a process has mapped takes long to read, and locks its memory meanwhile: only when something has changed.
        if (now := shared_memory()) != last_seen:
            of_run |= shared_memory_of([run.driver, *processes_of(run.mark)])
            last_seen = now
    left = processes_of(run.mark)
    of_run |= shared_memory_of(left)
    ended_well = os.read(sys.stdin.fileno(), len(_SAID)) == _SAID
    if not ended_well:
        line = run.facts.end("the run's own process (drpo_verl.train) was killed or crashed")
        with contextlib.suppress(OSError):
            print(f"\nerror: {line}", file=sys.stderr, flush=True)
    end_processes(run.mark, run.patience)
    for file in of_run:
        file.unlink(missing_ok=True)
    if run.temporary:
        if run.facts.ended_early:
            _keep_logs_of_ray(Path(run.temporary), Path(run.facts.folder))
        shutil.rmtree(run.temporary, ignore_errors=True)


def _keep_logs_of_ray(temporary: Path, folder: Path) -> None:
    # Those of its workers are in the run's own log.
    with contextlib.suppress(OSError):
        for logs in temporary.glob("ray/session_2*/logs"):
            shutil.copytree(
                logs, folder / RAY_LOGS, dirs_exist_ok=True, ignore=shutil.ignore_patterns("worker-*", "python-core-*")
            )


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # `ray job stop` ends the driver's children together with it, and this must not be one of them
    fields = json.loads(sys.argv[1])
    _main(_Run(**fields | {"facts": RunFacts(**fields["facts"])}))

"""Runs into which faults are injected, one after the other: each goes on where the one before has ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stack import ONE_UPDATE, OUTPUT, SHORT, processes_of, running

from drpo_verl.launch.processes import shared_memory_of
from drpo_verl.run_folder.steps import read_steps

START_SECONDS = 240.0
STALL_SECONDS = 90  # longer than a run takes to start, on a busy machine
STALLS = f"run.stall_seconds={STALL_SECONDS}"
END_SECONDS = 30.0
"""From a fault to the end of the run."""
GONE_SECONDS = 60.0
"""From its end to the end of everything that belongs to it."""

# A run that goes on until something happens to it, with a checkpoint every second step.
ENDLESS = (
    *SHORT, ONE_UPDATE, "trainer.total_training_steps=500", "trainer.total_epochs=1000", "trainer.test_freq=-1",
    "trainer.save_freq=2", "trainer.max_actor_ckpt_to_keep=2", "prepare.data.n_train=16",
)  # fmt: skip
THREE_STEPS = (*SHORT, ONE_UPDATE, "trainer.test_freq=-1", "trainer.save_freq=-1")


@dataclass
class LiveRun:
    """A run while it runs: its process, and where it puts its temporary files."""

    folder: Path
    process: subprocess.Popen[bytes]
    temporary: Path
    shared_memory: set[Path]
    started: float

    @property
    def output(self) -> str:
        return (self.folder / OUTPUT).read_text()

    @property
    def steps(self) -> list[int]:
        """The steps of this part of the run."""
        metrics = self.folder / "metrics.jsonl"
        if not metrics.exists() or metrics.stat().st_mtime < self.started:  # of the part before, until it is renamed
            return []
        return [step.step for step in read_steps(metrics)]

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of its steps."""
        return [step.metrics for step in read_steps(self.folder / "metrics.jsonl") if step.step > 0]

    @property
    def errors(self) -> list[str]:
        """The lines of its output that say that it has ended early."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def latest_checkpoint(self) -> int | None:
        """The step of the newest checkpoint that verl has finished."""
        note = self.folder / "checkpoints" / "latest_checkpointed_iteration.txt"
        return int(note.read_text() or -1) if note.exists() else None

    @property
    def log(self) -> str:
        log = self.folder / "train.log"
        return log.read_text() if log.exists() else ""

    def explain(self) -> str:
        """What a failed assertion shows."""
        return f"{self.output}\n--- the end of its log\n{self.log[-5000:]}"

    def wait_for_steps(self, count: int) -> None:
        """Wait until it has finished so many steps in this part, and a checkpoint has come with the last."""
        self.wait_until(lambda: len(self.steps) >= count)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.explain()
            time.sleep(0.2)

    def pids(self, title: str) -> list[int]:
        """The processes whose title begins so (``ray::WorkerDict``), in the order of their names."""
        found = []
        for process in processes_of(self.folder):
            with contextlib.suppress(Exception):
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process.pid)
        assert found, f"no process {title}"
        return sorted(found)

    def look_at_shared_memory(self) -> None:
        self.shared_memory |= shared_memory_of(process.pid for process in processes_of(self.folder))


@dataclass(frozen=True)
class End:
    """How a run ended: in how many seconds after the fault, and in how many more nothing was left of it."""

    run: LiveRun
    returncode: int
    seconds: float
    gone_seconds: float
    line: str

    @property
    def step(self) -> int:
        """The step that its line names."""
        match = re.search(r", in step (\d+) of \d+\. |, before the end of step (1)\. ", self.line)
        assert match, self.line
        return int(match[1] or match[2])

    @property
    def command(self) -> str:
        """The command with which it goes on, or starts anew."""
        return self.line.rpartition(": ")[2]

    @property
    def checkpoint(self) -> int | None:
        match = re.search(r"from the checkpoint of step (\d+): ", self.line)
        return int(match[1]) if match else None


def wait_for_end(run: LiveRun, since: float, limit: float = END_SECONDS, note: bool = True) -> End:
    """Wait for a run to end after a fault, and check what every such end has to be like.

    Args:
        run: the run.
        since: when the fault was, by ``time.monotonic``.
        limit: how many seconds it may take.
        note: whether the run's folder can have a note of it.
    """
    run.look_at_shared_memory()
    try:
        returncode = run.process.wait(max(0.1, since + limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the run goes on {limit:g} s after the fault\n{run.explain()}") from None
    ended = time.monotonic()
    while (left := _left(run)) and time.monotonic() < ended + GONE_SECONDS:
        time.sleep(0.5)
    gone = time.monotonic()
    assert not left, f"left after {GONE_SECONDS} s: {left}\n{run.explain()}"
    assert returncode != 0, run.explain()
    assert len(run.errors) == 1, run.explain()
    (line,) = run.errors
    if note:
        summary = json.loads((run.folder / "summary.json").read_text())
        assert summary["ended"]["why"] in line
        assert summary["ended"]["of"] == 500
        if run.steps:
            assert summary["ended"]["steps"] == run.steps[-1]
    return End(run, returncode, ended - since, gone - ended, line)


def _left(run: LiveRun) -> list[str]:
    processes = [f"{process.pid} {process.name()}" for process in processes_of(run.folder)]
    files = [*run.temporary.iterdir(), *(file for file in run.shared_memory if file.exists())]
    return processes + [str(file) for file in files]


@contextlib.contextmanager
def live(
    folder: Path, *overrides: str, command: str | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[LiveRun]:
    """Start a run whose temporary files are in a folder of their own; the arguments are those of ``running``."""
    temporary = Path("/tmp") / f"dv-{os.getpid()}-{folder.name}"  # short: Ray's socket paths have a limit
    temporary.mkdir()
    # What the run makes is in a folder of its own there, and torch's cache is kept.
    own = {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    try:
        with running(folder, *overrides, command=command, variables={**own, **(variables or {})}) as process:
            run = LiveRun(folder, process, temporary, set(), time.time())
            try:
                yield run
            finally:
                run.look_at_shared_memory()
    finally:
        for process in processes_of(folder):
            with contextlib.suppress(Exception):
                process.send_signal(signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


class Chain:
    """One run in many parts: each part is started by the command with which the part before has ended.

    So each part shows that its predecessor can be resumed, and the tests can be run in any order, or one alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: End | None = None

    @contextlib.contextmanager
    def part(self, *overrides: str) -> Iterator[LiveRun]:
        """Start the next part, with further overrides, and wait for its first steps."""
        last, self._last = self._last, None
        command = " ".join([last.command, *map(shlex.quote, overrides)]) if last else None
        with live(self._folder, *ENDLESS, *overrides, command=command) as run:
            run.wait_for_steps(3)
            if last is not None and last.checkpoint is not None:
                assert run.steps[0] == last.checkpoint + 1, run.explain()
            yield run

    def ended(self, end: End) -> None:
        """Note how the part has ended."""
        assert end.checkpoint is not None and end.step - 2 <= end.checkpoint <= end.step, end.line
        self._last = end


class Times:
    """What became of each fault, as it is shown in docs/reliability.md: written to a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, fault: str, end: End) -> None:
        """Note a fault that ends a run."""
        self._write(
            {"fault": fault, "exit_code": end.returncode, "seconds": round(end.seconds, 1),
             "gone_seconds": round(end.gone_seconds, 1), "line": end.line}
        )  # fmt: skip

    def goes_on(self, fault: str) -> None:
        """Note a fault over which a run goes on."""
        self._write({"fault": fault})

    def _write(self, record: dict[str, object]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

"""Making the runs of a study: each an ordinary run in a process of its own, and none twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from drpo_verl.errors import UserError
from drpo_verl.study.plan import Plan, PlannedRun

OUTCOME_FILE = "study.json"
OUTPUT_FILE = "output.txt"
_GRACE_SECONDS = 60.0
"""How long a run that is told to end may take to clear away what it has started."""


@dataclass(frozen=True)
class Outcome:
    """How a run of a study ended.

    Attributes:
        status: ``finished`` or ``failed``.
        why: of a failed run, in one line.
        seconds: how long it took, start-up included.
        overrides: of Hydra, as it was started.
    """

    status: str
    why: str
    seconds: float
    overrides: tuple[str, ...]


def overrides_of(plan: Plan, run: PlannedRun, folder: Path) -> tuple[str, ...]:
    """What ``drpo_verl.train`` gets for a run."""
    name = f"trainer.experiment_name={plan.name}-{run.name}"
    return (*run.overrides, f"run.seed={run.seed}", f"run.dir={folder / run.name}", name)


def outcome(folder: Path, plan: Plan, run: PlannedRun) -> Outcome | None:
    """How a run ended; None for one that was not made, not to its end, or with other settings."""
    file = folder / run.name / OUTCOME_FILE
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    made = Outcome(**{**content, "overrides": tuple(content["overrides"])})
    return made if made.overrides == overrides_of(plan, run, folder) else None


class Execution:
    """The runs of a study that are still to be made, a number of them at a time.

    Args:
        plan: the study.
        folder: where each run has a folder of its own. One that is left there by an interrupted run is removed.
        parallel: how many at a time; on GPUs each gets cards of its own.
        cards: how many cards a run takes; 0 on a CPU.

    Raises:
        UserError: when ``CUDA_VISIBLE_DEVICES`` names fewer cards than all of them take.
    """

    def __init__(self, plan: Plan, folder: Path, *, parallel: int = 1, cards: int = 0) -> None:
        self._plan = plan
        self._folder = folder
        self._parallel = parallel
        self._cards = cards
        self._slots: SimpleQueue[int] = SimpleQueue()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()
        self._visible = _visible_cards(parallel * cards)
        for slot in range(parallel):
            self._slots.put(slot)

    def make(self, runs: Sequence[PlannedRun], made: Callable[[PlannedRun, Outcome], None]) -> None:
        """Make the runs, and report each as it ends.

        Raises:
            KeyboardInterrupt: when interrupted; the runs under way are ended, and are started again next time.
        """
        with ThreadPoolExecutor(self._parallel) as pool:
            futures = [pool.submit(self._one, run, made) for run in runs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stopped.set()
                for process in list(self._processes):
                    _end(process)
                raise

    def _one(self, run: PlannedRun, made: Callable[[PlannedRun, Outcome], None]) -> None:
        if self._stopped.is_set():
            return
        folder = self._folder / run.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        overrides, slot, start = overrides_of(self._plan, run, self._folder), self._slots.get(), time.monotonic()
        environment = dict(os.environ)
        if self._cards:
            cards = self._visible[slot * self._cards : (slot + 1) * self._cards]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(cards)
        try:
            with (folder / OUTPUT_FILE).open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "drpo_verl.train", *overrides],
                    stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                )  # fmt: skip
                self._processes.add(process)
                code = process.wait()
                self._processes.discard(process)
        finally:
            self._slots.put(slot)
        if self._stopped.is_set():
            return
        why = "" if code == 0 else _why(folder / OUTPUT_FILE, code)
        ended = Outcome("failed" if why else "finished", why, round(time.monotonic() - start, 1), overrides)
        (folder / OUTCOME_FILE).write_text(json.dumps(asdict(ended), indent=2) + "\n")
        made(run, ended)


def _visible_cards(needed: int) -> list[str]:
    """The cards for the runs: of those that CUDA_VISIBLE_DEVICES names, where it is set.

    Raises:
        UserError: when it names fewer than are needed.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = [str(card) for card in range(needed)] if named is None else [each for each in named.split(",") if each]
    if len(cards) < needed:
        raise UserError(f"CUDA_VISIBLE_DEVICES={named} names {len(cards)} cards, and the runs need {needed} at a time.")
    return cards


def _why(output: Path, code: int) -> str:
    """The line in which a failed run says why; otherwise its last one."""
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    said = (errors or lines or ["it printed nothing"])[-1]
    return f"exit code {code}: {said.removeprefix('error:').strip()}"


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                continue

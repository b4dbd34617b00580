"""What a person sees of a run: one line a step on the terminal, the logs of its ten processes in a file."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from drpo_verl.launch.deaths import DeathWatch
from drpo_verl.metrics import names
from drpo_verl.metrics.alerts import Monitor
from drpo_verl.run_folder.steps import METRICS_FILE, Step, StepReader

EXIT_STALLED = 3
EXIT_DIED = 4
_STALL_HINT = (
    "The usual cause is a weight sync that failed inside vLLM: look for 'Error' in the logs. If your steps really take "
    "longer, raise run.stall_seconds."
)
DEATH_SECONDS = 5.0
"""How long verl may take to end by itself when one of its processes has died."""


@contextlib.contextmanager
def logs_to_file(path: Path) -> Iterator[Console]:
    """Send this process's output, and what Ray prints of its workers', to a file; yields the terminal as it was."""
    _flush()
    terminal, errors = os.dup(1), os.dup(2)
    with path.open("ab", buffering=0) as log, os.fdopen(os.dup(terminal), "w") as screen:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield Console(file=screen)
        finally:
            _flush()
            os.dup2(terminal, 1)
            os.dup2(errors, 2)
            os.close(terminal)
            os.close(errors)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the disk of the log is full
            stream.flush()


def describe(step: Step) -> str:
    """A step in a few words, as far as its metrics go."""
    metrics = step.metrics
    parts = []
    if names.REWARD in metrics:
        parts.append(f"reward {metrics[names.REWARD]:.3f}")
    if names.ABS_PROB_DIFF_MEAN in metrics:
        mismatch, together = (metrics.get(name) for name in (names.MISMATCH_MEAN, names.DRIFT_MEAN))
        mean = f"{metrics[names.ABS_PROB_DIFF_MEAN]:.1e}"
        if mismatch is not None and together is not None:  # more than one update a rollout
            mean = f"mismatch {mismatch:.1e}, with drift {together:.1e},"
        parts.append(f"|pi-mu| {mean} max {metrics.get(names.ABS_PROB_DIFF_MAX, math.nan):.1e}")
    if names.OUTSIDE in metrics:
        parts.append(f"outside {metrics[names.OUTSIDE]:.2%}")
    if len(step.validation) == 1:
        parts += [f"held-out accuracy {value:.3f}" for value in step.validation.values()]
    elif step.validation:
        each = ", ".join(f"{source} {value:.3f}" for source, value in step.validation.items())
        parts.append(f"held-out accuracy: {each}")
    if names.STEP_SECONDS in metrics:
        parts.append(f"{metrics[names.STEP_SECONDS]:.1f} s")
    return "  ".join(parts)


def describe_distance(steps: Sequence[Step]) -> str:
    """Mismatch and drift of a run in one sentence, each the mean over its steps; empty where neither was logged."""
    mismatch, together = (_mean(steps, name) for name in (names.MISMATCH_MEAN, names.DRIFT_MEAN))
    if mismatch is None:
        return ""
    before = f"in a sampled token's probability, trainer and rollout engine differ by {mismatch:.2g} before any update"
    if together is None:
        return f"{before} (mismatch)"
    return f"{before} (mismatch) and by {together:.2g} after updates (mismatch and drift)"


def _mean(steps: Sequence[Step], name: str) -> float | None:
    values = [step.metrics[name] for step in steps if math.isfinite(step.metrics.get(name, math.nan))]
    return math.fsum(values) / len(values) if values else None


class Follower(threading.Thread):
    """Follows a run's metrics file: shows each step as it comes, and ends a run that can not go on.

    A failed weight sync between trainer and rollout engine hangs a verl job for ever instead of failing it, and so may
    the death of one of its processes.

    Args:
        folder: the run's folder.
        console: the terminal.
        total_steps: how many steps the run will take; None when that is not known.
        stall_seconds: a run without a new step for so many seconds has hung.
        log: the file with the run's logs, to point to.
        monitor: the alerts that are announced.
        watch: knows what of the run has died by itself.
        give_up: ends this process, given the reason, what to look for, and the exit code.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        total_steps: int | None,
        stall_seconds: float,
        log: Path,
        monitor: Monitor,
        watch: DeathWatch,
        give_up: Callable[[str, str, int], None],
    ) -> None:
        super().__init__(name="follow-metrics", daemon=True)
        self._reader = StepReader(folder / METRICS_FILE, left_out=lambda line: self._warn(f"left out: {line}"))
        self._console = console
        self._total = total_steps
        self._stall_seconds = stall_seconds
        self._log = log
        self._monitor = monitor
        self._watch = watch
        self._give_up = give_up
        self._finished = threading.Event()

    def finish(self) -> None:
        """Show what is left and stop."""
        self._finished.set()
        self.join()

    def run(self) -> None:
        """The thread."""
        with Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        ) as progress:
            task = progress.add_task("starting Ray, vLLM and FSDP2", total=self._total)
            last_sign_of_life = time.monotonic()
            while True:
                finished = self._finished.wait(0.5)
                for step in self._reader.new():
                    of = f"/{self._total}" if self._total else ""
                    progress.console.print(
                        f"step {step.step:>3}{of}  {describe(step)}", highlight=False, soft_wrap=True
                    )
                    for notice in self._monitor.observe(step.step, step.metrics):
                        self._warn(notice.text)
                    progress.update(task, description="training", completed=step.step)
                    last_sign_of_life = time.monotonic()
                if finished:
                    return
                if deaths := self._watch.find():
                    # verl may say more about it, and ends by itself then.
                    if not self._finished.wait(DEATH_SECONDS):
                        progress.stop()
                        self._give_up(deaths[0], "", EXIT_DIED)
                    continue
                if time.monotonic() - last_sign_of_life > self._stall_seconds:
                    progress.stop()
                    hung = f"the run has hung: no step finished within run.stall_seconds={self._stall_seconds:g}"
                    self._give_up("; ".join([hung, *self._watch.stopped()]), _STALL_HINT, EXIT_STALLED)

    def _warn(self, text: str) -> None:
        # A style of print's own would colour the progress bar, too.
        self._console.print(Text(f"warning: {text}", style="bold yellow"), soft_wrap=not self._console.is_terminal)
        with contextlib.suppress(OSError), self._log.open("a") as log:  # a full disk does not end the following
            log.write(f"warning: {text}\n")

"""What is said and kept of a run that ended early: why, at which step, and the command that goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from drpo_verl.configuration.sections import ACTOR
from drpo_verl.models.saved_steps import resume_point
from drpo_verl.run_folder.steps import METRICS_FILE, SUMMARY_FILE, read_steps

ENDED = "ended"
"""The field of ``summary.json`` of a run that ended early: ``{"steps": done, "of": asked for, "why": text}``."""

RESUME_VARIABLE = "DRPO_VERL_RESUME_COMMAND"
"""Environment variable with the command that resumes the run, where a script has started it (``recipes/``)."""

_FULL = 2**22
"""Bytes that a disk has left when it counts as full; what did not fit has been larger, or has taken some of it."""
_RESUME_SETTING = "trainer.resume_mode"
_STEP = re.compile(r"global_step_(\d+)")


class RunEndedError(RuntimeError):
    """Training has started and ended early; the message is the line for the user."""


@dataclass(frozen=True)
class RunFacts:
    """What has to be known of a run to say how it ended, in whichever process says it.

    Attributes:
        folder: the run's folder.
        checkpoints: where verl puts its checkpoints.
        total_steps: how many steps were asked for; None where verl computes it from the epochs.
        resume_command: the command that goes on from the newest checkpoint in ``checkpoints``.
        same_command: the command that has started the run, for one without a checkpoint there.
        resumes: whether the run itself has gone on from the newest checkpoint there, if there was one.
        first_step: the step of a checkpoint from elsewhere that it has gone on from; 0 without.
        contents: what is loaded of a checkpoint (``actor.checkpoint.load_contents``).
        started: when it started, in seconds of ``time.time()``.
    """

    folder: str
    checkpoints: str
    total_steps: int | None
    resume_command: str
    same_command: str
    resumes: bool
    first_step: int = 0
    contents: Sequence[str] = ()
    started: float = field(default_factory=time.time)

    @classmethod
    def of(cls, config: DictConfig) -> RunFacts:
        """Return the facts of a composed configuration, started by the command line of this process."""
        trainer, overrides = config.trainer, sys.argv[1:]
        elsewhere = trainer.resume_mode == "resume_path" and _STEP.search(str(trainer.resume_from_path))
        return cls(
            folder=config.run.dir,
            checkpoints=str(Path(trainer.default_local_dir).absolute()),
            total_steps=trainer.total_training_steps,
            resume_command=resume_command(overrides),
            same_command=os.environ.get(RESUME_VARIABLE) or changed_command(overrides),
            resumes=trainer.resume_mode == "auto",
            first_step=int(elsewhere[1]) if elsewhere else 0,
            contents=list(OmegaConf.select(config, f"{ACTOR}.checkpoint.load_contents") or ()),
        )

    @property
    def steps(self) -> int:
        """The last step that was finished; 0 before the first, or where the metrics can not be read."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if self._has_begun:
                return int(read_steps(Path(self.folder) / METRICS_FILE)[-1].step)
        return (self.checkpoint or 0) if self.resumes else self.first_step

    @property
    def checkpoint(self) -> int | None:
        """The step of the newest checkpoint that is the run's own; None if there is none."""
        with contextlib.suppress(OSError, ValueError):
            step = resume_point(Path(self.checkpoints), self.contents).step
            # Starting anew in the folder of an earlier run leaves its checkpoints there.
            if step is not None and (self.resumes or step.folder.stat().st_mtime >= self.started):
                return step.number
        return None

    @property
    def _has_begun(self) -> bool:
        """Whether the metrics in the folder are not those of an earlier run, which are kept until this one begins."""
        file = Path(self.folder) / METRICS_FILE
        return not file.exists() or file.stat().st_mtime >= self.started

    @property
    def ended_early(self) -> bool:
        """Whether the run's folder says so."""
        with contextlib.suppress(OSError, ValueError):
            return ENDED in json.loads((Path(self.folder) / SUMMARY_FILE).read_text())
        return False

    def where(self) -> str:
        """Return the step at which the run is, in words."""
        steps, total = self.steps, self.total_steps
        if steps == 0:
            return "before the end of step 1"
        if total is not None and steps >= total:
            return f"after step {steps}, the last one"
        return f"in step {steps + 1}" + (f" of {total}" if total else "")

    def end(self, why: str) -> str:
        """Note in ``summary.json`` that the run has ended early, and return the line that says so.

        Args:
            why: what has happened, as a sentence without its full stop; the step is added.
        """
        why = f"{why}{self._full_disk()}"
        line = f"{why}, {self.where()}. {self.how_to_go_on()}"
        path = Path(self.folder) / SUMMARY_FILE
        with contextlib.suppress(OSError, ValueError):  # a full disk must not hide the reason
            if self._has_begun:
                summary = json.loads(path.read_text()) if path.exists() else {}
                summary[ENDED] = {"steps": self.steps, "of": self.total_steps, "why": why}
                path.write_text(json.dumps(summary, indent=2) + "\n")
        return line

    def _full_disk(self) -> str:
        """What is to be added to a reason where the disk is full, since those who write seldom say so."""
        for folder in dict.fromkeys((self.checkpoints, self.folder)):
            with contextlib.suppress(OSError):
                if shutil.disk_usage(folder).free < _FULL:
                    return f" (the disk of {folder} is full)"
        return ""

    def how_to_go_on(self) -> str:
        """Return a sentence with the checkpoint that there is, and the command that goes on from it."""
        checkpoint = self.checkpoint
        if checkpoint is None:
            return f"No checkpoint was saved (trainer.save_freq), so that this starts anew: {self.same_command}"
        return f"To go on from the checkpoint of step {checkpoint}: {self.resume_command}"


def resume_command(overrides: Sequence[str], *changes: str) -> str:
    """Return the command that goes on from a run's newest checkpoint, to be given to a shell.

    Args:
        overrides: the arguments with which the run was started.
        *changes: settings that are to have other values, as ``name=value``.
    """
    if given := os.environ.get(RESUME_VARIABLE):
        return " ".join([given, *map(shlex.quote, changes)])
    return changed_command(overrides, *changes, f"{_RESUME_SETTING}=auto")


def changed_command(overrides: Sequence[str], *changes: str) -> str:
    """Return the command that has started this run, with some settings changed, to be given to a shell.

    Args:
        overrides: the arguments with which the run was started.
        *changes: settings that are to have other values, as ``name=value``.
    """
    names = {change.partition("=")[0] for change in changes}
    kept = [each for each in overrides if each.lstrip("+").partition("=")[0] not in names]
    found = shutil.which("python")
    here = found is not None and os.path.abspath(found) == os.path.abspath(sys.executable)
    return shlex.join(["python" if here else sys.executable, "-m", "drpo_verl.train", *kept, *changes])

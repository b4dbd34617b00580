"""A process for each engine: what it is told, how it answers, and what is said when it can not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from drpo_verl.probe.device import environment
from drpo_verl.probe.prompts import Messages
from drpo_verl.probe.settings import ProbeError, Settings
from drpo_verl.probe.tokens import Samples, Scores, load, save

_JOB, _ERROR = "job.json", "error.txt"
_SAMPLES, _SCORES = "samples.npz", "scores.npz"


@dataclass(frozen=True)
class Job:
    """What both processes are told.

    Attributes:
        folder: where they leave their results.
        settings: what to measure.
        model: a folder, or a name on the hub.
        device: see ``drpo_verl.probe.device.device_type``.
        prompts: the messages of each.
        top_k: how many of the likeliest tokens to list at each position.
    """

    folder: Path
    settings: Settings
    model: str
    device: str
    prompts: list[Messages]
    top_k: int

    def write(self) -> None:
        """Leave it in its folder."""
        (self.folder / _JOB).write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read it there."""
        job = json.loads((folder / _JOB).read_text())
        return cls(**{**job, "folder": folder, "settings": Settings(**job["settings"])})

    def read_samples(self) -> Samples:
        """What the rollout engine has sampled."""
        samples: Samples = load(self.folder / _SAMPLES, Samples)
        return samples

    def read_scores(self) -> Scores:
        """What the training engine has made of it."""
        scores: Scores = load(self.folder / _SCORES, Scores)
        return scores

    def start(self, module: str, log: Path) -> None:
        """Run one of the processes to its end, in the environment of the device.

        Args:
            module: of this package: "sample" or "score".
            log: where its output goes.

        Raises:
            ProbeError: when it fails, with its reason and the place of the log.
        """
        (self.folder / _ERROR).unlink(missing_ok=True)
        with log.open("ab") as output:
            process = subprocess.run(
                [sys.executable, "-m", f"{__package__}.{module}", str(self.folder)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment(self.device, self.model)},
                check=False,
            )
        if process.returncode == 0:
            return
        reason = (
            f"it ended with code {process.returncode} (-9: killed, usually since memory ran out; "
            "take a smaller --count or --max-tokens)."
        )
        if (self.folder / _ERROR).exists():
            reason = (self.folder / _ERROR).read_text()
        raise ProbeError(f"MODEL={self.settings.model!r}, {module}: {reason} The log is in {log}.")


def serve(folder: Path, answer: Callable[[Job], Samples | Scores]) -> None:
    """What such a process does: read the job, answer it, leave the answer or the reason why there is none."""
    try:
        result = answer(Job.read(folder))
        save(folder / (_SAMPLES if isinstance(result, Samples) else _SCORES), result)
    except Exception as error:
        traceback.print_exc()
        reason = str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}"
        (folder / _ERROR).write_text(" ".join(reason.split()))
        # Not raised again: vLLM's processes are ended by its own handlers on a normal exit.
        sys.exit(1)

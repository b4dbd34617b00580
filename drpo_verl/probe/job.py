"""A process for each engine: what it is told, how it answers, and what is said when it can not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from drpo_verl.engine import process
from drpo_verl.engine.device import environment
from drpo_verl.errors import UserError
from drpo_verl.probe.prompts import Messages
from drpo_verl.probe.settings import ProbeError, Settings
from drpo_verl.probe.tokens import Samples, Scores, load, save

_JOB = "job.json"
_SAMPLES, _SCORES = "samples.npz", "scores.npz"


@dataclass(frozen=True)
class Job:
    """What both processes are told.

    Attributes:
        folder: where they leave their results.
        settings: what to measure.
        model: a folder, or a name on the hub.
        device: see ``drpo_verl.engine.device.device_type``.
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
        try:
            process.run(f"{__package__}.{module}", self.folder, log, environment(self.device, self.model))
        except UserError as error:
            raise ProbeError(f"MODEL={self.settings.model!r}, {module}: {error} The log is in {log}.") from error


def serve(folder: Path, answer: Callable[[Job], Samples | Scores]) -> None:
    """What such a process does: read the job, answer it, leave the answer or the reason why there is none."""
    with process.reporting(folder):
        result = answer(Job.read(folder))
        save(folder / (_SAMPLES if isinstance(result, Samples) else _SCORES), result)

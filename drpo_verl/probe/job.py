"""The job that both engine processes of a probe read, and the arrays that they answer with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from drpo_verl.engine import process
from drpo_verl.engine.device import engine_environment
from drpo_verl.errors import UserError
from drpo_verl.probe.prompts import Messages
from drpo_verl.probe.settings import Settings
from drpo_verl.probe.tokens import Samples, Scores, load, save

_JOB = "job.json"
_SAMPLES, _SCORES = "samples.npz", "scores.npz"


@dataclass(frozen=True)
class Job:
    """What a probe's two engine processes need to know.

    Attributes:
        folder: where the job is written and the processes leave their results.
        settings: the options of the probe.
        model: a folder, or a name on the hub.
        device: a torch device type, see ``drpo_verl.engine.device.device_type``.
        prompts: the messages of each prompt.
        top_k: number of the likeliest tokens to list at each position.
    """

    folder: Path
    settings: Settings
    model: str
    device: str
    prompts: list[Messages]
    top_k: int

    def write(self) -> None:
        """Write the job into its folder."""
        (self.folder / _JOB).write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read the job in a folder."""
        job = json.loads((folder / _JOB).read_text())
        return cls(**{**job, "folder": folder, "settings": Settings(**job["settings"])})

    def read_samples(self) -> Samples:
        """Read what the rollout engine has sampled."""
        return load(self.folder / _SAMPLES, Samples)

    def read_scores(self) -> Scores:
        """Read the training engine's log-probabilities of the samples."""
        return load(self.folder / _SCORES, Scores)

    def start(self, module: str, log: Path) -> None:
        """Run one of the engine processes to its end, in the environment of the device.

        Args:
            module: of this package: "sample" or "score".
            log: file to which the output of the process is appended.

        Raises:
            UserError: the process fails; the message has its reason and the place of the log.
        """
        try:
            process.run(f"{__package__}.{module}", self.folder, log, engine_environment(self.device, self.model))
        except UserError as error:
            raise UserError(f"MODEL={self.settings.model!r}, {module}: {error} The log is in {log}.") from error


def serve(folder: Path, answer: Callable[[Job], Samples | Scores]) -> None:
    """Be an engine process: read the job, answer it, and leave the answer, or the reason why there is none."""
    with process.reporting(folder):
        result = answer(Job.read(folder))
        save(folder / (_SAMPLES if isinstance(result, Samples) else _SCORES), result)

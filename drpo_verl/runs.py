"""What a run leaves behind: its metrics file, its validation accuracy, its picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

METRICS_FILE = "metrics.jsonl"
PICTURE_FILE = "run.png"
SUMMARY_FILE = "summary.json"

REWARD = "critic/score/mean"
_VALIDATION_PREFIX = "val-core/"


@dataclass(frozen=True)
class Step:
    """One line of the metrics file: the global step (0 for the validation before training) and its metrics."""

    step: int
    metrics: dict[str, float]

    @property
    def validation(self) -> float | None:
        """Accuracy on the held-out problems, if they were tried at this step."""
        return next((value for name, value in self.metrics.items() if name.startswith(_VALIDATION_PREFIX)), None)


class StepReader:
    """Reads a metrics file as verl's file logger writes it, while it is being written.

    Args:
        path: of the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[Step]:
        """The steps that have been written since the last call; a line still being written is left for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            written = file.read()
        finished = written[: written.rfind(b"\n") + 1]
        self._offset += len(finished)
        return list(_parse(finished.decode()))


def read_steps(path: Path) -> list[Step]:
    """Read a whole metrics file; a last line still being written is left out.

    Raises:
        FileNotFoundError: when there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"no metrics file at {path}")
    return StepReader(path).new()


def _parse(lines: str) -> Iterator[Step]:
    for line in lines.splitlines():
        record = json.loads(line)
        # The file logger writes null for NaN.
        yield Step(record["step"], {k: math.nan if v is None else v for k, v in record["data"].items()})


def wilson_interval(accuracy: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, both ends in [0, 1].

    Args:
        accuracy: the proportion observed.
        count: how many independent trials it is over; > 0.
        confidence: of the interval.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z * z / count
    centre = (accuracy + z * z / (2 * count)) / scale
    half = z * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count)) / scale
    # At 0 and 1 one end is the proportion itself, which rounding must not move past it.
    return min(accuracy, max(0.0, centre - half)), max(accuracy, min(1.0, centre + half))


def draw(steps: list[Step], path: Path, *, title: str, validation_count: int | None = None) -> None:
    """Draw reward and training-inference mismatch over the steps of a run, as a PNG.

    Args:
        steps: of the run.
        path: where to write it.
        title: above the picture.
        validation_count: over how many held-out problems the accuracy is, for its interval.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    trained = [step for step in steps if REWARD in step.metrics]
    at = [step.step for step in trained]

    def series(name: str) -> list[float]:
        return [step.metrics.get(name, math.nan) for step in trained]

    figure, (reward, mismatch, region) = plt.subplots(
        3, 1, figsize=(8, 9), sharex=True, layout="constrained", height_ratios=(3, 3, 2)
    )
    figure.suptitle(title)

    reward.plot(at, series(REWARD), color="C0", label="training samples (mean of the step)")
    tried = [(step.step, step.validation) for step in steps if step.validation is not None]
    if tried:
        values = [value for _, value in tried]
        errors = None
        if validation_count:
            ends = [wilson_interval(value, validation_count) for value in values]
            errors = [[v - low for v, (low, _) in zip(values, ends, strict=True)],
                      [high - v for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
        reward.errorbar(
            [step for step, _ in tried], values, errors, fmt="o", color="C3", capsize=4,
            label="held-out accuracy, 95 % interval",
        )  # fmt: skip
    reward.set_ylabel("reward (share of right answers)")
    reward.set_ylim(0, 1)
    reward.legend(loc="lower right")

    mismatch.plot(at, series("mismatch/abs_prob_diff_mean"), color="C1", label="mean over tokens")
    mismatch.plot(at, series("mismatch/abs_prob_diff_max"), color="C1", alpha=0.5, ls="--", label="largest")
    mismatch.set_yscale("log")
    mismatch.set_ylabel(r"$|\pi - \mu|$ of sampled tokens")
    mismatch.legend(loc="best")

    region.plot(at, series("trust_region/weight_mean"), color="C2", label="mean over tokens")
    region.plot(at, series("trust_region/weight_min"), color="C2", alpha=0.5, ls="--", label="smallest")
    region.axhline(0, color="0.5", lw=0.8)
    region.set_ylabel("gradient weight w\n(below 0: corrected)")
    region.legend(loc="best")
    region.set_xlabel("training step")
    for axes in (reward, mismatch, region):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)

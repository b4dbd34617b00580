"""What a run leaves behind: its metrics file, and its validation accuracy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from drpo_verl.run_folder.lines import Line, LineReader, parse_json, refuse

METRICS_FILE = "metrics.jsonl"
PICTURE_FILE = "run.png"
SUMMARY_FILE = "summary.json"

_OF_VALIDATION = ("val-core/", "val-aux/")
_VALIDATION = re.compile(r"val-core/(.+)/[^/]+/mean@\d+")


@dataclass(frozen=True)
class Step:
    """One line of the metrics file: the global step (0 for the validation before training) and its metrics.

    verl's file logger writes null for NaN and for infinity; both are NaN here.
    """

    step: int
    metrics: dict[str, float]

    @property
    def trained(self) -> bool:
        """Whether an update was made, and the policy not only tried on the held-out problems."""
        return not self.metrics or any(not name.startswith(_OF_VALIDATION) for name in self.metrics)

    @property
    def validation(self) -> dict[str, float]:
        """Accuracy on the held-out problems by their data source; empty where they were not tried at this step.

        The mean over a source's problems and their samples (verl's ``mean@n``, not its ``best@n`` and ``maj@n``).
        """
        matches = ((_VALIDATION.fullmatch(name), value) for name, value in self.metrics.items())
        return dict(sorted((match[1], value) for match, value in matches if match))


class StepReader:
    """Reads a metrics file, which need not exist yet, while verl's file logger writes it.

    Args:
        path: of the file.
        left_out: told of each line that is no step, as ``FILE, line N: why``; by default such a line is an error.
    """

    def __init__(self, path: Path, left_out: Callable[[str], None] = refuse) -> None:
        self._path = path
        self._lines = LineReader(path)
        self._left_out = left_out

    def new(self) -> list[Step]:
        """The steps that have been written since the last call; a line still being written is left for the next.

        Raises:
            ValueError: when a line is no step, unless ``left_out`` is told of it.
        """
        return self._parse(self._lines.new())

    def rest(self) -> list[Step]:
        """The same when nobody writes the file any more: a last line without its end counts, if it is a step."""
        steps = self.new()
        unfinished = self._lines.unfinished()
        try:
            return steps + ([_step(unfinished.text)] if unfinished else [])
        except ValueError:
            assert unfinished is not None
            if self._left_out is not refuse:  # as it is while a run is going on, and where one was killed
                self._left_out(f"{self._path}, line {unfinished.number}: was not written to its end")
            return steps

    def _parse(self, lines: list[Line]) -> list[Step]:
        steps = []
        for line in lines:
            try:
                steps.append(_step(line.text))
            except ValueError as error:
                self._left_out(f"{self._path}, line {line.number}: {error}")
        return steps


def read_steps(path: Path, left_out: Callable[[str], None] = refuse) -> list[Step]:
    """Read a whole metrics file; a last line that is only half written is left out.

    Of the run in a folder, which may have been resumed, ``drpo_verl.run_folder.parts.read_run`` reads all files.

    Args:
        path: of the file.
        left_out: see ``StepReader``.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: see ``StepReader``.
    """
    if not path.exists():
        raise FileNotFoundError(f"no metrics file at {path}")
    return StepReader(path, left_out).rest()


def _step(line: bytes) -> Step:
    """One line of the metrics file.

    Raises:
        ValueError: saying why it is none.
    """
    record = parse_json(line)
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict) or "step" not in record:
        raise ValueError('is not a step, {"step": 1, "data": {...}}')
    step = _number(record["step"])
    if step is None or not step.is_integer() or step < 0:
        raise ValueError(f"step={record['step']!r} is not a whole number")
    metrics = {name: number for name, value in record["data"].items() if (number := _number(value)) is not None}
    return Step(int(step), metrics)


def _number(value: Any) -> float | None:
    """A number as JSON has it, or written as text; NaN for null, and None for what is no number."""
    if value is None:
        return math.nan
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if value > 0 else -math.inf
    except ValueError:
        return None


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


def held_out_interval(accuracy: float, problems: int | None) -> tuple[float, float] | None:
    """The 95 % interval of a held-out accuracy, with a trial a problem.

    Samples of one problem are alike: as trials of their own they would make it far too narrow. With one sample a
    problem this is Wilson's interval; with more it is conservative, wider than it need be, since a mean over samples
    varies less than one of them (``drpo-verl eval`` resamples the problems instead, having the score of each).

    Args:
        accuracy: the mean over problems and samples.
        problems: how many, whatever the samples of each; None or 0 where it is not known.

    Returns:
        None where it is not known, or where the score is no proportion, but a reward of the user's own.
    """
    return wilson_interval(accuracy, problems) if problems and 0 <= accuracy <= 1 else None

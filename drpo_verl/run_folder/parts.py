"""A run that was resumed, or repeated, in the same folder: its files in parts, and what they are together.

Each start writes files of its own, such as ``metrics.jsonl``; those of the start before are then called
``metrics.1.jsonl``, those of the second one ``metrics.2.jsonl``, and so on: the highest number is the latest but one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from drpo_verl.run_folder import worst_tokens
from drpo_verl.run_folder.lines import refuse
from drpo_verl.run_folder.steps import METRICS_FILE, Step, read_steps
from drpo_verl.run_folder.worst_tokens import WORST_TOKENS_FILE, WorstToken


@dataclass(frozen=True)
class RecordedRun:
    """What a run has recorded from its beginning, however often it was resumed.

    Attributes:
        steps: one for each global step, in order, the validation before training among them.
        worst_tokens: of each step, the token on which pi and mu differ most; empty when not kept.
    """

    steps: list[Step]
    worst_tokens: list[WorstToken]


def keep_earlier(folder: Path, names: Iterable[str]) -> None:
    """Rename what an earlier start of a run has left, since verl's file logger truncates the files that it finds.

    Args:
        folder: of the run.
        names: of its files. All that are there and not empty get the same number, the next one.
    """
    there = [folder / name for name in names]
    number = 1 + max((number for path in there for number, _ in _earlier(path)), default=0)
    for path in there:
        if path.exists() and path.stat().st_size:
            path.rename(path.with_name(f"{path.stem}.{number}{path.suffix}"))


def all_parts(path: Path) -> list[Path]:
    """The files that a run has left under one name, the earliest start's first; those that do not exist left out."""
    return [earlier for _, earlier in _earlier(path)] + ([path] if path.exists() else [])


def read_run(folder: Path, left_out: Callable[[str], None] = refuse) -> RecordedRun:
    """Read the run in a folder from all of its parts.

    A part that was resumed goes on from a checkpoint: what the parts before had done beyond it is not in the weights
    any more, and left out. What was before the checkpoint, and before training, is kept. Where the later part has only
    tried the checkpoint on the held-out problems, the step has the metrics of both.

    Args:
        folder: of the run.
        left_out: told of each line that can not be read; see ``StepReader``.

    Raises:
        FileNotFoundError: when there is no metrics file.
        ValueError: when a line can not be read, unless ``left_out`` is told of it.
    """
    parts = all_parts(folder / METRICS_FILE)
    if not parts:
        raise FileNotFoundError(f"no metrics file at {folder / METRICS_FILE}")
    steps: dict[int, Step] = {}
    tokens: list[WorstToken] = []
    for part in parts:
        of_part = read_steps(part, left_out)
        if not of_part:
            continue
        first = of_part[0]
        checkpoint = first.step if first.step > 0 and not first.trained else first.step - 1
        steps = {number: step for number, step in steps.items() if number <= checkpoint}
        for step in of_part:
            before = steps[step.step].metrics if step.step in steps else {}
            steps[step.step] = Step(step.step, {**before, **step.metrics})
        tokens = [token for token in tokens if token.step is None or token.step <= checkpoint]
        tokens += worst_tokens.read(_in_same_part(part, WORST_TOKENS_FILE), left_out)
    return RecordedRun([steps[number] for number in sorted(steps)], tokens)


def _earlier(path: Path) -> list[tuple[int, Path]]:
    """The numbers and files of the starts before the last one, in order."""
    name = re.compile(rf"{re.escape(path.stem)}\.(\d+){re.escape(path.suffix)}")
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    return sorted((int(match[1]), sibling) for sibling in siblings if (match := name.fullmatch(sibling.name)))


def _in_same_part(part: Path, name: str) -> Path:
    """The file of that name which belongs to the same part as a metrics file."""
    number = part.name.removeprefix(Path(METRICS_FILE).stem).removesuffix(part.suffix)
    return part.with_name(f"{Path(name).stem}{number}{Path(name).suffix}")

"""The steps that verl's trainer has saved in a folder: which of them are whole, and which one a run goes on from.

verl saves ``global_step_N/``: ``actor/`` (and ``critic/``) with the shards of each rank, then ``data.pt``; then it
writes N into ``latest_checkpointed_iteration.txt`` beside the steps. A run that is killed, or whose disk is full,
leaves a step that is half-written, or that file empty. verl itself trusts the file: without it, or where it names a
step that is not there, training starts from the beginning; a step that is half-written is left for the workers to find.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NOTE = "latest_checkpointed_iteration.txt"
"""The file with the number of the last step that verl has finished saving."""

FSDP_CONFIG = "fsdp_config.json"
HUGGING_FACE = "huggingface"

_STEP = re.compile(r"global_step_(\d+)")
_SHARD = re.compile(r"(model|optim|extra_state)_world_size_(\d+)_rank_(\d+)\.pt")
_SHARD_OF = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
"""How the shards of what is saved begin (``actor.checkpoint.save_contents``)."""
_DATA = "data.pt"
_QUEUE_BEING_WRITTEN = "transfer_queue.tmp"
"""What TransferQueue, whose samples an asynchronous trainer saves last, renames when it has written all of it."""
_OF_MEGATRON = "ckpt_contents.json"
"""What verl's Megatron actor writes when all else is saved."""


@dataclass(frozen=True)
class SavedStep:
    """A step that verl has saved, or has begun to.

    Attributes:
        number: of the step.
        folder: ``global_step_N``.
        problem: what is missing or cut short; empty when the step is whole.
    """

    number: int
    folder: Path
    problem: str

    @property
    def has_place_in_data(self) -> bool:
        """Whether a run that goes on from it takes up the data where it was."""
        return (self.folder / _DATA).exists()


@dataclass(frozen=True)
class ResumePoint:
    """Where ``trainer.resume_mode=auto`` goes on, and why.

    Attributes:
        step: the newest whole step that verl has finished, or where nobody knows which, the newest whole one; None to
            start from the beginning.
        trusted: whether verl finds that step by itself.
        broken: the steps that are not whole.
        note_problem: what is wrong with the file that names the last step; empty when it is right, or not there and
            not missed.
    """

    step: SavedStep | None
    trusted: bool
    broken: Sequence[SavedStep]
    note_problem: str


def steps_in(folder: Path) -> dict[int, Path]:
    """The folders ``global_step_N`` in a folder, by N in order."""
    folders = (path for path in folder.glob("global_step_*") if path.is_dir())
    return dict(sorted((int(match[1]), path) for path in folders if (match := _STEP.fullmatch(path.name))))


def inspect_step(
    number: int, folder: Path, contents: Sequence[str], *, all_ranks: bool = True, finished: bool = False
) -> SavedStep:
    """Look whether a run can be resumed from a step. Only names and the ends of files are read.

    Args:
        number: of the step.
        folder: ``global_step_N``.
        contents: what is loaded (``actor.checkpoint.load_contents``).
        all_ranks: whether the shards of all ranks are to be here; not so on one of several nodes with own disks.
        finished: whether it is known that verl had finished it: without ``data.pt``, which is saved last, somebody has
            then removed that, and verl does without.
    """
    problem = shards_problem(folder / "actor", contents, all_ranks=all_ranks)
    if not problem and (folder / "critic").is_dir():
        problem = shards_problem(folder / "critic", contents, all_ranks=all_ranks)
    if not problem and not zipfile.is_zipfile(folder / _DATA) and ((folder / _DATA).exists() or not finished):
        problem = f"{_DATA} is {_missing_or_short(folder / _DATA)}"
    if not problem and (folder / _QUEUE_BEING_WRITTEN).is_dir():
        problem = "transfer_queue/ was not written to its end"
    return SavedStep(number, folder, problem)


def shards_problem(actor: Path, contents: Sequence[str], *, all_ranks: bool = True) -> str:
    """What is missing or cut short of the folder of an actor or critic; empty when nothing is.

    Args:
        actor: the folder.
        contents: which of ``model``, ``optimizer`` and ``extra`` has to be there.
        all_ranks: see ``inspect_step``.
    """
    if not actor.is_dir() or not any(actor.iterdir()):
        return f"{actor.name}/ is {'empty' if actor.is_dir() else 'missing'}"
    world = world_size(actor)
    if world is None:
        if (actor / "model").is_dir() and not (actor / _OF_MEGATRON).is_file():
            return f"{actor.name}/{_OF_MEGATRON} is missing"
        # Of what other engines save nothing is known here: verl's note has to do.
        return f"{actor.name}/ has no shards" if (actor / FSDP_CONFIG).is_file() else ""
    for content in contents:
        for rank in range(world) if content in _SHARD_OF else ():
            shard = actor / f"{_SHARD_OF[content]}_world_size_{world}_rank_{rank}.pt"
            if not zipfile.is_zipfile(shard) and (all_ranks or shard.exists()):
                return f"{actor.name}/{shard.name} is {_missing_or_short(shard)}"
    return ""


def world_size(actor: Path) -> int | None:
    """How many ranks have saved an FSDP checkpoint; None when it has no shards.

    Where several numbers of ranks have saved into one folder, verl's own file says which one did last; without it, the
    largest is taken.
    """
    sizes = {int(match[2]) for path in actor.iterdir() if (match := _SHARD.fullmatch(path.name))}
    try:
        last = json.loads((actor / FSDP_CONFIG).read_bytes()).get("world_size")
    except (OSError, ValueError, AttributeError):
        last = None
    return last if last in sizes else max(sizes, default=None)


def _missing_or_short(file: Path) -> str:
    return "cut short" if file.exists() else "missing"


def read_note(folder: Path) -> tuple[int | None, str]:
    """The step that verl has finished last according to its note, and what is wrong with the note, if anything is."""
    note = folder / NOTE
    try:
        text = note.read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        return None, f"{NOTE} is missing"
    if not text:
        return None, f"{NOTE} is empty"
    if not re.fullmatch(r"[0-9]+", text):
        return None, f"{NOTE} has {text[:20]!r}, which is no step"
    return int(text), ""


def resume_point(folder: Path, contents: Sequence[str], *, all_ranks: bool = True) -> ResumePoint:
    """Where a run goes on from what is saved in a folder, which need not exist.

    Args:
        folder: ``trainer.default_local_dir``.
        contents: see ``inspect_step``.
        all_ranks: see ``inspect_step``.
    """
    steps = steps_in(folder)
    number, note_problem = read_note(folder)
    if not steps and number is None:  # an empty note without a step: nothing is lost
        return ResumePoint(None, True, [], "")
    if number is not None and number not in steps:
        note_problem = f"{NOTE} names step {number}, which is not there"
    broken: list[SavedStep] = []
    newest = None
    for each in reversed(steps):
        step = inspect_step(each, steps[each], contents, all_ranks=all_ranks, finished=each == number)
        if step.problem:
            broken.append(step)
            continue
        newest = newest or step
        if note_problem or each <= (number or 0):
            break
    if not note_problem and step.number == number and not step.problem:
        return ResumePoint(step, True, broken, "")
    # Without a note, and without a whole step, verl had not finished its first one.
    never_finished = newest is None and not (folder / NOTE).exists()
    return ResumePoint(newest, never_finished, broken, "" if never_finished else note_problem)

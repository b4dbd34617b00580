"""Writes generated problems: arithmetic, and any of reasoning-gym's tasks whose scorer is safe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console
from rich.progress import Progress

from drpo_verl.data.write import progress_bar, write
from drpo_verl.errors import UserError

_CHUNK = 1000
_MAX_DRY_DRAWS = 20_000
"""Consecutive draws without a new problem after which a task counts as exhausted."""


def arithmetic(out: Path, *, train: int, test: int, seed: int, style: str) -> dict[str, Any]:
    """Write arithmetic problems as the CPU experiments have them, with their held-out split as test problems.

    Args:
        out: the folder to write.
        train: number of problems to train on.
        test: number of problems to test on; none of them is ever in a train split.
        seed: seed of the draw.
        style: "terse" for the tiny policy, "natural" for a model that reads English.

    Returns:
        The manifest.

    Raises:
        UserError: an option can not be fulfilled; the message names it.
    """
    from drpo_verl.rewards.arithmetic import Difficulty, Split, Style, make_problems, to_verl_rows

    if style not in get_args(Style):
        raise UserError(f"--style={style!r} is not one of {', '.join(get_args(Style))}.")
    # A small model that reads English is hardly ever right about a difference: as in experiment=cpu_smollm2.
    difficulty = Difficulty(subtraction=style == "terse")
    rows = {}
    splits: tuple[tuple[str, Split, int], ...] = (("train", "train", train), ("test", "val", test))
    for name, split, count in splits:
        try:
            problems = make_problems(split, count, seed=seed, difficulty=difficulty)
        except ValueError as error:
            raise UserError(f"--{name}={count}: {error}.") from error
        rows[name] = to_verl_rows(problems, split=split, style=cast(Style, style))
    recipe = {"dataset": "arithmetic", "train": train, "test": test, "seed": seed, "style": style}
    return write(out, rows, {**recipe, "source": {"generator": "drpo_verl.rewards.arithmetic"}})


def reasoning_gym(out: Path, *, task: str, train: int, test: int, seed: int, console: Console) -> dict[str, Any]:
    """Write problems of one of reasoning-gym's tasks, at its default difficulty.

    Args:
        out: the folder to write.
        task: name of the task.
        train: number of problems to train on.
        test: number of problems to test on; a problem's text alone decides whether it may be one of these.
        seed: seed of the draw.
        console: where the progress is shown.

    Returns:
        The manifest.

    Raises:
        UserError: an option can not be fulfilled; the message has its value and the remedy.
    """
    from drpo_verl.rewards import gym

    for name, count in (("train", train), ("test", test)):
        if count < 1:
            raise UserError(f"--{name}={count} must be at least 1.")
    try:
        known = gym.tasks()
    except ImportError as error:
        raise UserError(f"--task={task!r}: {error}") from error
    if task not in known:
        raise UserError(f"--task={task!r} is not one of reasoning-gym's: {', '.join(known)}.")
    if gym.evaluates_answers(task):
        safe = ", ".join(name for name in known if not gym.evaluates_answers(name))
        raise UserError(
            f"--task={task!r}: reasoning-gym's scorer of it evaluates text as code, which a model's answer must never "
            f"be. These do not: {safe}."
        )
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    with progress_bar(console) as progress:
        unscorable = _fill(task, seed, rows, {"train": train, "test": test}, progress)
    recipe = {"dataset": "reasoning_gym", "task": task, "train": train, "test": test, "seed": seed}
    source = {"generator": "reasoning-gym", "task": task}
    return write(out, rows, {**recipe, "source": source, "unscorable": unscorable})


def _fill(
    task: str, seed: int, rows: dict[str, list[dict[str, Any]]], wanted: dict[str, int], progress: Progress
) -> int:
    """Append rows until there are as many as wanted; return the number of problems that their own scorer refuses."""
    from drpo_verl.rewards import gym
    from drpo_verl.rewards.arithmetic import split_of

    bar = progress.add_task(task, total=sum(wanted.values()))
    seen: set[str] = set()
    dry = unscorable = 0
    for item in _items(task, seed):
        dry += 1
        if dry > _MAX_DRY_DRAWS:
            have = ", ".join(f"{len(rows[name])} for --{name}={count}" for name, count in wanted.items())
            raise UserError(
                f"--task={task!r} gives no more different problems ({have}; {unscorable} that its own scorer does not "
                "give 1 for the right answer): ask for fewer."
            )
        question = item["question"]
        name = {"train": "train", "val": "test"}.get(split_of(question), "")
        if question in seen or not name or len(rows[name]) == wanted[name]:
            continue
        seen.add(question)
        try:
            entry = gym.pack(item)
        except TypeError as error:
            raise UserError(f"--task={task!r}: its problems can not be kept in a file ({error}).") from error
        if gym.score_answer(task, item["answer"], entry) < 1:
            unscorable += 1
            continue
        dry = 0
        rows[name].append(_row(task, item, entry, name, len(rows[name])))
        progress.advance(bar)
        if all(len(rows[name]) == count for name, count in wanted.items()):
            break
    return unscorable


def _items(task: str, seed: int) -> Iterator[dict[str, Any]]:
    from drpo_verl.rewards import gym

    # Item i of a data set comes from Random(seed + i): the stride between seeds is longer than any scan.
    first = seed * 1_000_003
    while True:
        dataset = gym.load().create_dataset(task, seed=first, size=_CHUNK)
        yield from (dataset[index] for index in range(_CHUNK))
        first += _CHUNK


def _row(task: str, item: dict[str, Any], entry: str, split: str, index: int) -> dict[str, Any]:
    from drpo_verl.rewards import gym

    return {
        "data_source": gym.PREFIX + task,
        "prompt": [{"role": "user", "content": f"{item['question'].rstrip()}\n\n{gym.INSTRUCTION}"}],
        "ability": "reasoning",
        "reward_model": {"style": "rule", "ground_truth": item["answer"]},
        "extra_info": {"index": index, "split": split, "entry": entry},
    }

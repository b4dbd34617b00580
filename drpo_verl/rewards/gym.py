"""The problems and scorers of reasoning-gym, except for scorers that evaluate an answer as code."""

import ast
import inspect
import json
import logging
import sys
import textwrap
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from drpo_verl.rewards import judge
from drpo_verl.rewards.packages import require

_log = logging.getLogger(__name__)

PREFIX = "reasoning_gym/"
"""The beginning of a problem's data source; the name of the task follows."""

_OPEN, _CLOSE = "<answer>", "</answer>"
INSTRUCTION = f"Give the final answer between {_OPEN} and {_CLOSE}."
_MAX_CHARACTERS = 16_384

_NONSENSE = "no answer at all"
"""An answer to no problem: what a scorer gives for it is given for nothing."""

_EVALUATES = frozenset({"eval", "exec", "compile", "parse_expr", "sympify", "S", "__import__"})


def load() -> ModuleType:
    """Import reasoning-gym, which takes seconds, since it imports every one of its tasks.

    Raises:
        ImportError: it is missing.
    """
    if "pycosat" not in sys.modules and find_spec("pycosat") is None:
        # For one puzzle, reasoning-gym imports pycosat with everything else: a C extension without wheels, which a
        # machine without a compiler can not install. Nothing here calls it.
        sys.modules["pycosat"] = ModuleType("pycosat")
    return require("reasoning_gym", "reasoning-gym")


def tasks() -> list[str]:
    """Return the names of reasoning-gym's tasks."""
    load()
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


@lru_cache(maxsize=256)
def evaluates_answers(task: str) -> bool:
    """Return whether the task's scorer, or a function of its module that it calls, evaluates text as code.

    Some of reasoning-gym's scorers do, with `eval` or sympy's `parse_expr`, on what the model wrote. The installed
    source is read, and strictly: a scorer that evaluates only its own problem counts too.
    """
    load()
    from reasoning_gym.factory import DATASETS

    dataset = DATASETS[task][0]
    module = inspect.getmodule(dataset.score_answer)
    assert module is not None
    pending: list[Any] = [dataset.score_answer]
    seen: set[Any] = set()
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        for call in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            if not isinstance(call, ast.Call):
                continue
            name = str(getattr(call.func, "id", "") or getattr(call.func, "attr", ""))
            holder = dataset if isinstance(call.func, ast.Attribute) else module
            called = getattr(holder, name, None)
            if inspect.isfunction(called) and called.__module__ == module.__name__:
                pending.append(called)
            elif name in _EVALUATES:
                return True
    return False


def pack(item: dict[str, Any]) -> str:
    """Write a problem as the JSON that `score` takes.

    Raises:
        TypeError: the problem's metadata has no JSON form.
    """
    return json.dumps({name: item[name] for name in ("question", "answer", "metadata")}, ensure_ascii=False)


def extract(response: str) -> str | None:
    """Return the text between the last pair of answer tags, or None without one."""
    end = response.rfind(_CLOSE)
    start = response.rfind(_OPEN, 0, max(end, 0))
    return response[start + len(_OPEN) : end].strip() if start >= 0 else None


def score(task: str, response: str, entry: str) -> float:
    """Score a response with the task's own scorer, in a process that is killed when it takes too long.

    Args:
        task: a task of reasoning-gym.
        response: the decoded response.
        entry: the problem, as `pack` wrote it.

    Returns:
        A score in [0, 1]; some tasks give a part of the reward.

    Raises:
        ValueError: the task does not exist, or its scorer would evaluate the answer as code.
        ImportError: reasoning-gym, or a package that the scorer imports, is missing.
        JudgeError: the processes that compare answers do not run.
    """
    if task not in tasks():
        raise ValueError(f"reasoning-gym has no task {task!r}")
    if evaluates_answers(task):
        raise ValueError(
            f"reasoning-gym's scorer of {task!r} evaluates the model's answer as code: choose another task"
        )
    answer = extract(response)
    if answer is None or len(answer) > _MAX_CHARACTERS:
        return 0.0
    try:
        return _verdict(task, answer, entry)
    except judge.AnswerError as error:
        _log.warning("an answer counts as wrong: %s (task %s, answer %.80r)", error, task, answer)
        return 0.0


def score_answer(task: str, answer: str, entry: str) -> float:
    """Score an answer with the task's own scorer in this process, without a limit to its time.

    The whole reward for NaN, or for what nonsense gets as well, is no reward.
    """
    problem = json.loads(entry)
    truth = str(problem.get("answer"))
    if "nan" in answer.casefold() and "nan" not in truth.casefold():
        return 0.0  # no difference to NaN is larger than a tolerance: complex_arithmetic takes it for right
    value = _ask(task, answer, problem)
    if value == 1.0 and answer != truth and _ask(task, _NONSENSE, problem) == 1.0:
        return 0.0  # game_of_life_halting takes every text for a yes
    return value


def _ask(task: str, answer: str, problem: dict[str, Any]) -> float:
    try:
        return min(1.0, max(0.0, float(_scorer(task)(answer, problem))))
    except ImportError:
        raise
    except Exception:
        # The scorers were written for well-formed answers, and an answer may be anything. The problem is not to blame:
        # when the data were made, the scorer took it with the right answer.
        return 0.0


@lru_cache(maxsize=65_536)  # verdicts only: an error, such as a time-out on a busy machine, is not remembered
def _verdict(task: str, answer: str, entry: str) -> float:
    return judge.shared().ask(score_answer, task, answer, entry)


@lru_cache(maxsize=256)
def _scorer(task: str) -> Any:
    return load().get_score_answer_fn(task)

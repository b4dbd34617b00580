"""Reward functions with faults, and some that are right though unusual."""

from __future__ import annotations

import itertools
import math
import time

_calls = itertools.count()


def raises(data_source: str, solution_str: str, ground_truth: str, **_: object) -> float:
    raise KeyError("no such answer")


def none(data_source: str, solution_str: str, ground_truth: str, **_: object) -> None:
    return None


def is_nan(data_source: str, solution_str: str, ground_truth: str, **_: object) -> float:
    return math.nan


def text(data_source: str, solution_str: str, ground_truth: str, **_: object) -> str:
    return "0.5"


def hangs_later(data_source: str, solution_str: str, ground_truth: str, **_: object) -> float:
    """Hang from the second step of 32 samples on."""
    if next(_calls) >= 32:
        time.sleep(1e6)
    return 0.5


def all_right_then_all_wrong(data_source: str, solution_str: str, ground_truth: str, **_: object) -> float:
    """Score the 32 samples of the first step 1, those of the second 0, and then by the length of the response."""
    step = next(_calls) // 32
    return float(step == 0) if step < 2 else float(len(solution_str) % 2)

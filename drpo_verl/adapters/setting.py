"""Settings of the policy loss: which objectives take one, and the error about one that can not work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

from drpo_verl.losses import Objective
from drpo_verl.losses.geometry import PROBABILITY

Applies = Callable[[Objective], bool]
"""Whether a setting has an effect on an objective."""


class SettingError(ValueError):
    """A setting that can not work.

    Args:
        setting: its full name.
        value: its value; None when it is not set.
        problem: what is wrong, to be read after ``setting=value``.
        remedy: what to change, as a sentence.
    """

    def __init__(self, setting: str, value: Any, problem: str, remedy: str) -> None:
        self.setting, self.value, self.problem, self.remedy = setting, value, problem, remedy
        place = setting if value is None else f"{setting}={value!r}"
        super().__init__(f"{place}{',' if problem.startswith('but ') else ''} {problem} {remedy}")


def takes_threshold(row: Objective) -> bool:
    """Whether delta means anything to it."""
    return row.enforcement.needs_threshold and row.verl_loss is None


def takes_two_thresholds(row: Objective) -> bool:
    """Whether tokens that rise may have another delta than those that fall."""
    return takes_threshold(row) and not row.adaptive and not needs_budget(row)


def needs_budget(row: Objective) -> bool:
    """Whether it has position weights and a budget of the prefix."""
    return row.scope is not None and row.scope.needs_budget


def takes_penalty(row: Objective) -> bool:
    """Whether DRPO's ablation of the penalty can be made with it."""
    return row.enforcement.attenuates and row.geometry is PROBABILITY and row.scope is None


def setting(applies: Applies, default: Any = None, number: bool = True) -> Any:
    """A field of the policy loss: for which objectives it is, and whether it is a number above 0."""
    return field(default=default, metadata={"applies": applies, "number": number})


def is_positive(value: object) -> bool:
    """Whether it is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)

"""The file of a study: what varies, which combinations are run, and what counts as a collapse."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from drpo_verl.errors import UserError

_KEYS = {"name", "question", "base", "axes", "seeds", "cells", "collapse", "metrics"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Collapse:
    """When a run has collapsed: its mean reward has fallen below a share of what it was at the start.

    Attributes:
        steps: how many steps at each end of the run are averaged.
        below: the share of the first steps' mean reward below which the last steps' counts as a collapse.
    """

    steps: int
    below: float

    def happened(self, rewards: Sequence[float]) -> bool | None:
        """Whether it did; None for a run too short to tell."""
        if len(rewards) < 2 * self.steps:
            return None
        first, last = rewards[: self.steps], rewards[-self.steps :]
        return sum(last) < self.below * sum(first)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        choices: the choice of each axis.
        seed: ``run.seed``.
        overrides: of Hydra, without those that name and seed the run.
    """

    choices: Mapping[str, str]
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its folder: the choices and the seed."""
        return "-".join([*self.choices.values(), f"seed{self.seed}"])


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        name: its folder among the results.
        question: what it is to answer.
        axes: the names of what varies.
        collapse: when a run has collapsed.
        metrics: which metrics of each step are kept.
        runs: all runs, in the order in which they are made.
    """

    name: str
    question: str
    axes: tuple[str, ...]
    collapse: Collapse
    metrics: tuple[str, ...]
    runs: tuple[PlannedRun, ...]


def read_plan(path: Path) -> Plan:
    """Read a study's file.

    ``axes`` has the Hydra overrides of each choice of each axis; ``cells`` lists, in the order of the runs, which
    choices are combined, an axis that is not named having all of its own, and ``seeds`` where they differ from the
    study's. A combination that two cells name is run once, with the seeds of both.

    Raises:
        UserError: when the file can not be read, or names what it does not define.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is no study: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no study: it has no {', '.join(sorted(_KEYS))}.")
    _require(path, not (unknown := content.keys() - _KEYS), f"knows no {', '.join(map(str, sorted(unknown, key=str)))}")
    _require(path, not (missing := {"name", "axes", "seeds", "cells", "collapse"} - content.keys()),
             f"lacks {', '.join(sorted(missing))}")  # fmt: skip
    axes = _axes(path, content["axes"])
    name, collapse = content["name"], content["collapse"]
    _require(path, isinstance(name, str) and bool(_NAME.fullmatch(name)), f"name={name!r} is no name of a folder")
    try:
        rule = Collapse(steps=int(collapse["steps"]), below=float(collapse["below"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: collapse={collapse!r} needs `steps` and `below`, both numbers.") from error
    base = _overrides(path, "base", content.get("base", []))
    runs: dict[str, PlannedRun] = {}
    for cell in content["cells"]:
        for run in _runs_of(path, cell, axes, _seeds(path, content["seeds"]), base):
            same = runs.setdefault(run.name, run)
            _require(path, same.choices == run.choices, f"has two runs with the name {run.name}: rename a choice")
    return Plan(
        name=name,
        question=" ".join(str(content.get("question", "")).split()),
        axes=tuple(axes),
        collapse=rule,
        metrics=tuple(content.get("metrics", ())),
        runs=tuple(runs.values()),
    )


def _require(path: Path, fulfilled: bool, problem: str) -> None:
    if not fulfilled:
        raise UserError(f"{path} {problem}.")


def _overrides(path: Path, where: str, value: Any) -> tuple[str, ...]:
    fine = isinstance(value, list) and all(isinstance(each, str) and "=" in each for each in value)
    _require(path, fine, f"has in {where} {value!r}, which is no list of name=value")
    return tuple(value)


def _seeds(path: Path, value: Any) -> tuple[int, ...]:
    fine = isinstance(value, list) and bool(value) and all(type(each) is int and each >= 0 for each in value)
    _require(path, fine, f"has the seeds {value!r}, which are no list of whole numbers")
    return tuple(value)


def _axes(path: Path, value: Any) -> dict[str, dict[str, tuple[str, ...]]]:
    _require(path, isinstance(value, dict) and bool(value), f"has the axes {value!r}, which name nothing that varies")
    axes = {}
    for axis, choices in value.items():
        _require(path, isinstance(choices, dict) and bool(choices), f"has an axis {axis!r} without choices")
        for choice in choices:
            _require(path, isinstance(choice, str) and bool(_NAME.fullmatch(choice)),
                     f"has in axes.{axis} the choice {choice!r}, which is no name (quote a number)")  # fmt: skip
        axes[str(axis)] = {
            choice: _overrides(path, f"axes.{axis}.{choice}", overrides or []) for choice, overrides in choices.items()
        }
    return axes


def _runs_of(
    path: Path,
    cell: Any,
    axes: Mapping[str, Mapping[str, tuple[str, ...]]],
    seeds: tuple[int, ...],
    base: tuple[str, ...],
) -> list[PlannedRun]:
    _require(path, isinstance(cell, dict), f"has the cell {cell!r}, which names no choices")
    unknown = cell.keys() - axes.keys() - {"seeds"}
    _require(path, not unknown, f"has a cell with {', '.join(map(str, unknown))}, which is no axis")
    chosen: list[list[str]] = []
    for axis, choices in axes.items():
        names = cell.get(axis, list(choices))
        names = names if isinstance(names, list) else [names]
        unknown = [each for each in names if each not in choices]
        _require(path, not unknown, f"has a cell with {axis}: {unknown}, and knows {', '.join(choices)}")
        chosen.append(names)
    runs = []
    for combination in itertools.product(*chosen):
        picked = dict(zip(axes, combination, strict=True))
        overrides = (*base, *(each for axis, choice in picked.items() for each in axes[axis][choice]))
        for seed in _seeds(path, cell["seeds"]) if "seeds" in cell else seeds:
            runs.append(PlannedRun(picked, seed, overrides))
    return runs

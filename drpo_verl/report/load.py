"""What a report knows of a run: its steps, and as far as they are there its configuration and environment."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from drpo_verl.configuration.method import METHOD, method_of
from drpo_verl.run_folder import worst_tokens
from drpo_verl.run_folder.environment import ENVIRONMENT_FILE
from drpo_verl.run_folder.steps import METRICS_FILE, SUMMARY_FILE, Step, held_out_interval, read_steps
from drpo_verl.run_folder.worst_tokens import WorstToken

LAST_STEPS = 5
"""Over so many steps at its end a run's final figures are averaged."""

_WANTED = "Give run folders (run.dir) or metrics files, which verl writes with 'file' in trainer.logger."


@dataclass(frozen=True)
class Accuracy:
    """Held-out accuracy on a data source after a step, with its 95 % interval where the number of problems is known."""

    step: int
    source: str
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ReportRun:
    """One run.

    Attributes:
        name: unique in the report.
        steps: in order, the validation before training among them.
        method: see ``method_of``.
        config: flat, ``a.b.c`` to its value as YAML has it; empty when not known. Interpolations are unresolved, except
            for the method's thresholds, which an experiment's ``paper`` section may have set.
        environment: as ``drpo_verl.run_folder.environment`` writes it; empty when not known.
        problems: over how many held-out problems the accuracy is, by data source, as far as known.
        worst_tokens: of each step, the token on which pi and mu differ most; empty when not kept.
    """

    name: str
    steps: Sequence[Step]
    method: str | None = None
    config: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)
    worst_tokens: Sequence[WorstToken] = ()

    def values(self, metric: str) -> dict[int, float]:
        """A metric by step, without the steps that do not have it or have NaN."""
        found = ((step.step, step.metrics.get(metric, math.nan)) for step in self.steps)
        return {step: value for step, value in found if math.isfinite(value)}

    def last(self, metric: str) -> float | None:
        """Its mean over the last ``LAST_STEPS`` steps that have it; None when none has."""
        return mean(list(self.values(metric).values())[-LAST_STEPS:])

    @property
    def trained_steps(self) -> int:
        """The last step's number: 0 for a run that was only validated."""
        return max((step.step for step in self.steps), default=0)

    @property
    def accuracies(self) -> list[Accuracy]:
        """Held-out accuracy at each step at which it was measured, on each data source."""
        return [
            Accuracy(step.step, source, value, held_out_interval(value, self.problems.get(source)))
            for step in self.steps
            for source, value in step.validation.items()
            if math.isfinite(value)
        ]


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    every = list(values)
    return math.fsum(every) / len(every) if every else None


def load_runs(paths: Sequence[Path], left_out: Callable[[str], None] = lambda reason: None) -> list[ReportRun]:
    """Read runs.

    Args:
        paths: of run folders or metrics files. Configuration, environment and summary are looked for beside a file
            called ``metrics.jsonl``; another name is that of an earlier run in the same folder, or of a lone file.
        left_out: told of each of several paths that holds no step (``outputs/*`` has more than runs), and why.

    Raises:
        FileNotFoundError: when a path does not exist, or the only one has no metrics file.
        ValueError: when the only one holds no step, or none does, or a path is given twice.
    """
    found: list[tuple[Path, list[Step]]] = []
    for path in paths:
        file = path / METRICS_FILE if path.is_dir() else path
        try:
            found.append((file, _read_steps(file)))
        except (FileNotFoundError, ValueError) as error:
            if len(paths) == 1 or not path.exists():
                raise type(error)(f"{error}. {_WANTED}") from error
            left_out(str(error))
    if not found:
        raise ValueError(f"none of the {len(paths)} paths holds a step of a run. {_WANTED}")
    names = _names([file.absolute() for file, _ in found])
    return [_load(file, steps, name) for (file, steps), name in zip(found, names, strict=True)]


def _read_steps(file: Path) -> list[Step]:
    try:
        steps = read_steps(file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a metrics file as verl's file logger writes it: {error!r}") from error
    if not steps:
        raise ValueError(f"{file} has no step")
    return steps


def _load(file: Path, steps: list[Step], name: str) -> ReportRun:
    if file.name != METRICS_FILE:
        return ReportRun(name, steps)
    folder = file.parent
    method, config = _read_config(folder / ".hydra" / "config.yaml")
    return ReportRun(
        name=name,
        steps=steps,
        method=method,
        config=config,
        environment=_read_json(folder / ENVIRONMENT_FILE),
        problems=_problems(_read_json(folder / SUMMARY_FILE), {source for step in steps for source in step.validation}),
        worst_tokens=worst_tokens.read(folder / worst_tokens.WORST_TOKENS_FILE),
    )


def _names(files: Sequence[Path]) -> list[str]:
    """A run's folder (or lone file), with as many of its parents as it takes to tell it from the others."""
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise ValueError(f"{twice} is given twice: leave one out.")
    places = [(file.parent if file.name == METRICS_FILE else file.with_suffix("")).parts for file in files]
    for depth in range(1, max(map(len, places), default=0) + 1):
        names = ["/".join(parts[-depth:]) for parts in places]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _problems(summary: dict[str, Any], sources: set[str]) -> dict[str, int]:
    # Earlier summaries name no source: their number is that of all, which is of use where there is one.
    only = next(iter(sources)) if len(sources) == 1 else None
    counts = {entry.get("data_source", only): entry.get("problems") for entry in summary.get("validation", ())}
    return {source: count for source, count in counts.items() if source is not None and count}


def _read_config(path: Path) -> tuple[str | None, dict[str, str]]:
    """The method and all settings, in which it is resolved, since some methods name it by another setting."""
    if not path.exists():
        return None, {}
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    method = method_of(config)
    settings = {
        name: json.dumps(OmegaConf.select(config, name)) if value.startswith("${oc.select:paper.") else value
        for name, value in _flat(OmegaConf.to_container(config, resolve=False), "")
        if not name.startswith("paper.")  # for all methods; what this one has taken of it stands in its own settings
    }
    return method, settings if method is None or METHOD not in settings else settings | {METHOD: method}


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node if isinstance(node, str) else json.dumps(node)

"""Reads what runs have left: their steps and, where they are there, configuration and environment."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from drpo_verl.configuration import seeds as _registers_resolvers  # noqa: F401
from drpo_verl.configuration.method import method_of
from drpo_verl.run_folder.environment import ENVIRONMENT_FILE
from drpo_verl.run_folder.lines import parse_json
from drpo_verl.run_folder.parts import RecordedRun, all_parts, read_run
from drpo_verl.run_folder.steps import METRICS_FILE, SUMMARY_FILE, Step, held_out_interval, read_steps
from drpo_verl.run_folder.worst_tokens import WorstToken

PLACES = ("run.dir", "trainer.experiment_name", "trainer.default_local_dir", "ray_kwargs.ray_init._temp_dir")
"""The settings that say where a run's files are: they differ always, and tell nothing."""

LAST_STEPS = 5
"""The number of steps at a run's end over which its final figures are averaged."""

_WANTED = "Give run folders (run.dir) or metrics files, which verl writes with 'file' in trainer.logger."


@dataclass(frozen=True)
class Accuracy:
    """Held-out accuracy on a data source after a step, with its 95 % interval where the number of problems is known."""

    step: int
    source: str
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Ended:
    """That a run ended early.

    Attributes:
        steps: the last step that was finished.
        of: how many were to be; None when that is not known.
        why: in words; empty when that is not known, as of a run that is still going on.
    """

    steps: int
    of: int | None
    why: str


@dataclass(frozen=True)
class ReportRun:
    """A run as a report shows it.

    Attributes:
        name: unique in the report.
        steps: in order, the validation before training among them.
        method: see ``method_of``.
        config: flat, ``a.b.c`` to its value as YAML has it; empty when not known. Interpolations are resolved, but for
            environment variables, and for ``PLACES`` in the value of another setting.
        derived: the settings that are set to what others are.
        environment: as ``drpo_verl.run_folder.environment`` writes it; empty when not known.
        problems: over how many held-out problems the accuracy is, by data source, as far as known.
        worst_tokens: of each step, the token on which pi and mu differ most; empty when not kept.
        unreadable: what of its files could not be read, and why.
        ended: set where the run ended before its last step.
    """

    name: str
    steps: Sequence[Step]
    method: str | None = None
    config: dict[str, str] = field(default_factory=dict)
    derived: frozenset[str] = frozenset()
    environment: dict[str, str] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)
    worst_tokens: Sequence[WorstToken] = ()
    unreadable: Sequence[str] = ()
    ended: Ended | None = None

    def values(self, metric: str) -> dict[int, float]:
        """A metric by step, without the steps that do not have it or have NaN."""
        values = ((step.step, step.metrics.get(metric, math.nan)) for step in self.steps)
        return {step: value for step, value in values if math.isfinite(value)}

    def last(self, metric: str) -> float | None:
        """The mean of a metric over the last ``LAST_STEPS`` steps that have it; None when none has."""
        return mean(list(self.values(metric).values())[-LAST_STEPS:])

    @cached_property
    def not_finite(self) -> dict[str, list[int]]:
        """The metrics that are NaN or infinite anywhere, each with the steps at which it is."""
        steps: dict[str, list[int]] = {}
        for step in self.steps:
            for name, value in step.metrics.items():
                if not math.isfinite(value):
                    steps.setdefault(name, []).append(step.step)
        return steps

    @property
    def trained_steps(self) -> int:
        """The last step's number: 0 for a run that was only validated."""
        return max((step.step for step in self.steps), default=0)

    @cached_property
    def accuracies(self) -> list[Accuracy]:
        """Held-out accuracy at each step at which it was measured, on each data source."""
        return [
            Accuracy(step.step, source, value, held_out_interval(value, self.problems.get(source)))
            for step in self.steps
            for source, value in step.validation.items()
            if math.isfinite(value)
        ]


def mean(values: Iterable[float]) -> float | None:
    """The mean of numbers; None without any."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else None


def load_runs(paths: Sequence[Path], left_out: Callable[[str], None] = lambda reason: None) -> list[ReportRun]:
    """Read runs.

    Args:
        paths: of run folders or metrics files. Configuration, environment and summary are looked for beside a file
            called ``metrics.jsonl``; another name is that of an earlier run in the same folder, or of a lone file.
        left_out: told of each of several paths that holds no step (``outputs/*`` has more than runs), of each line that
            is none, and of other files that can not be read, and why.

    Raises:
        FileNotFoundError: when a path does not exist, or the only one has no metrics file.
        ValueError: when the only one holds no step, or none does, or a path is given twice.
    """
    runs: list[tuple[Path, RecordedRun, list[str]]] = []
    for path in paths:
        file, problems = path / METRICS_FILE if path.is_dir() else path, list[str]()
        try:
            runs.append((file, _read(file, problems), problems))
        except (FileNotFoundError, ValueError) as error:
            if len(paths) == 1 or not path.exists():
                raise type(error)(f"{error}. {_WANTED}") from error
            left_out(str(error))
    if not runs:
        raise ValueError(f"none of the {len(paths)} paths holds a step of a run. {_WANTED}")
    names = _names([file.absolute() for file, _, _ in runs])
    loaded = [_load(file, run, name, problems) for (file, run, problems), name in zip(runs, names, strict=True)]
    for each in loaded:
        for problem in each.unreadable:
            left_out(problem)
    return loaded


def _read(file: Path, problems: list[str]) -> RecordedRun:
    """The run that a metrics file belongs to; ``problems`` gets what can not be read of it."""
    if file.name == METRICS_FILE:
        run = read_run(file.parent, problems.append)
    else:
        run = RecordedRun(read_steps(file, problems.append), [])
    if run.steps:
        return run
    if problems:
        first = problems[0].removeprefix(f"{file}, ")
        raise ValueError(f"{file} is not a metrics file as verl's file logger writes it: {first}")
    raise ValueError(f"{file} has no step")


def _load(file: Path, run: RecordedRun, name: str, unreadable: list[str]) -> ReportRun:
    if file.name != METRICS_FILE:
        return ReportRun(name, run.steps, unreadable=unreadable)
    folder, left_out = file.parent, unreadable.append
    method, config, derived = _read_config(folder / ".hydra" / "config.yaml", left_out)
    summaries = [_read_json(path, left_out) for path in all_parts(folder / SUMMARY_FILE)]
    # A start that is going on, or has failed, does not know the held-out problems, which are those of the start before.
    with_problems: dict[str, Any] = next((each for each in reversed(summaries) if each.get("validation")), {})
    of_this_start = summaries[-1] if (folder / SUMMARY_FILE).exists() else {}
    return ReportRun(
        name=name,
        steps=run.steps,
        method=method,
        config=config,
        derived=derived,
        environment=_read_json(folder / ENVIRONMENT_FILE, left_out),
        problems=_problems(with_problems, {source for step in run.steps for source in step.validation}),
        worst_tokens=run.worst_tokens,
        unreadable=unreadable,
        ended=_ended(of_this_start, config, run.steps[-1].step),
    )


def _ended(summary: Mapping[str, Any], config: Mapping[str, str], steps: int) -> Ended | None:
    """How a run ended according to its summary, or to the number of steps that it was to have."""
    planned = config.get("trainer.total_training_steps", "")
    of = int(planned) if planned.isdecimal() else None
    entry = summary.get("ended")
    if isinstance(entry, dict):
        done, asked = entry.get("steps"), entry.get("of")
        of = asked if isinstance(asked, int) else of
        return Ended(done if isinstance(done, int) else steps, of, " ".join(str(entry.get("why") or "").split()))
    return Ended(steps, of, "") if of is not None and steps < of else None


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


def _read_json(path: Path, left_out: Callable[[str], None]) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    if not path.exists():
        return {}
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        left_out(f"{path} {error}")
        return {}
    if not isinstance(value, dict):
        left_out(f"{path} is not a JSON object")
        return {}
    return value


def _problems(summary: Mapping[str, Any], sources: set[str]) -> dict[str, int]:
    # Earlier summaries name no source: their number is that of all, which is of use where there is one.
    only = next(iter(sources)) if len(sources) == 1 else None
    entries = [entry for entry in summary.get("validation", ()) if isinstance(entry, dict)]
    counts = {entry.get("data_source", only): entry.get("problems") for entry in entries}
    return {source: count for source, count in counts.items() if source is not None and count}


def _read_config(path: Path, left_out: Callable[[str], None]) -> tuple[str | None, dict[str, str], frozenset[str]]:
    """The method, all settings with their values, and which of them are set to what others are."""
    if not path.exists():
        return None, {}, frozenset()
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        left_out(f"{path} is no configuration ({(str(error).splitlines() or [type(error).__name__])[0]})")
        return None, {}, frozenset()
    if not isinstance(config, DictConfig) or not config:
        left_out(f"{path} is no configuration")
        return None, {}, frozenset()
    places = {name: OmegaConf.select(config, name, throw_on_resolution_failure=False) for name in PLACES}
    places = {name: str(place) for name, place in places.items() if place is not None}
    # Literally: environment variables, since the reader's may not be the run's, and places in what is made of them.
    written = json.dumps(OmegaConf.to_container(config)).replace("${oc.env:", r"\\${oc.env:")
    named = OmegaConf.create(json.loads(written))
    for name in places:
        OmegaConf.update(named, name, rf"\${{{name}}}")
    # For all methods; what this one has taken of it stands in its own settings.
    settings = [setting for setting in _flat(named) if not setting[0].startswith("paper.")]
    config_by_name = {name: value for name, value, _ in settings} | places
    return method_of(config), config_by_name, frozenset(name for name, _, derived in settings if derived)


def _flat(node: DictConfig, prefix: str = "", derived: bool = False) -> Iterator[tuple[str, str, bool]]:
    """Name, value and whether it is derived, of each setting below ``node``."""
    as_written: Any = OmegaConf.to_container(node)
    for key in node:
        name, follows = prefix + str(key), derived or OmegaConf.is_interpolation(node, str(key))
        try:
            value = node[key]
            if isinstance(value, ListConfig):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException:  # it refers to what is not there
            value = as_written[key]
        if isinstance(value, DictConfig) and value:
            yield from _flat(value, f"{name}.", follows)
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, default=dict), follows

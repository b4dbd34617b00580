"""Groups the runs that are repetitions of each other, and finds the settings that tell the others apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from drpo_verl.report.load import PLACES, ReportRun

METHOD = "method"

# The beginnings of settings that leave the training itself as it is.
_NON_TRAINING = (
    *PLACES, "run.", "alerts.", "ray_kwargs.", "prepare.cache_dir", "trainer.logger", "trainer.project_name",
    "trainer.save_freq", "trainer.test_freq", "trainer.val_before_train", "trainer.resume_",
    "actor_rollout_ref.rollout.trace.project_name",
)  # fmt: skip
_MOST_NAMED = 2
NOT_SET = "(not set)"
"""In the place of a value that a run does not have."""


@dataclass(frozen=True)
class Group:
    """Runs that are drawn as one line: their mean, in a band from the smallest to the largest."""

    label: str
    runs: Sequence[ReportRun]


@dataclass(frozen=True)
class Point:
    """A metric over a group's runs at one step."""

    step: int
    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """A setting with its values, and the names of the runs that have each."""

    key: str
    values: Sequence[tuple[str, Sequence[str]]]


def curve(group: Group, metric: str, *, scale: float = 1.0) -> list[Point]:
    """A metric, times ``scale``, over the steps of a group; a run without it at a step has no part in that one."""
    by_step: dict[int, list[float]] = {}
    for run in group.runs:
        for step, value in run.values(metric).items():
            by_step.setdefault(step, []).append(scale * value)
    return [
        Point(step, math.fsum(values) / len(values), min(values), max(values), len(values))
        for step, values in sorted(by_step.items())
    ]


def not_finite_steps(group: Group, metric: str) -> list[int]:
    """The steps at which a metric is NaN or infinite in every run of a group that has logged it."""
    broken = {step for run in group.runs for step in run.not_finite.get(metric, ())}
    return sorted(broken - {step for run in group.runs for step in run.values(metric)})


def group_runs(runs: Sequence[ReportRun], by: str = METHOD) -> list[Group]:
    """Group runs, in the order in which they are given.

    Args:
        runs: all of a report.
        by: ``method`` for runs that share the method and every setting but the seeds; else a setting, by whose value
            alone they are grouped. A run without a known method is a group of its own.

    Raises:
        ValueError: when ``by`` is a setting of none of the runs.
    """
    if by != METHOD:
        return _by_setting(runs, by)
    alike: dict[tuple[str, frozenset[tuple[str, str]]], list[ReportRun]] = {}
    for run in runs:
        settings = frozenset(item for item in run.config.items() if _trains(item[0]))
        alike.setdefault((run.method or run.name, settings), []).append(run)
    variants: dict[str, list[ReportRun]] = {}
    for (method, _), members in alike.items():
        variants.setdefault(method, []).append(members[0])
    labels = {run.name: label for method, first in variants.items() for run, label in _labelled(method, first)}
    return [Group(labels[members[0].name], members) for members in alike.values()]


def _by_setting(runs: Sequence[ReportRun], key: str) -> list[Group]:
    if not any(key in run.config for run in runs):
        known = [difference.key for difference in config_differences(runs)]
        raise ValueError(
            f"--group-by={key} is a setting of none of the runs. Settings in which they differ: "
            f"{', '.join(known) or 'none'}. The default, {METHOD}, groups what differs in nothing but seeds."
        )
    by_value: dict[str, list[ReportRun]] = {}
    for run in runs:
        by_value.setdefault(run.config.get(key, NOT_SET), []).append(run)
    return [Group(f"{_last_part(key)}={value}", members) for value, members in by_value.items()]


def _labelled(method: str, variants: Sequence[ReportRun]) -> list[tuple[ReportRun, str]]:
    """Name the variants of a method by what differs, or by number when that is too much for a label."""
    if len(variants) == 1:
        return [(variants[0], method)]
    keys = [difference.key for difference in config_differences(variants) if _trains(difference.key)]
    if len(keys) > _MOST_NAMED:
        return [(run, f"{method} #{number}") for number, run in enumerate(variants, 1)]
    return [
        (run, ", ".join([method, *(f"{_last_part(key)}={run.config.get(key, NOT_SET)}" for key in keys)]))
        for run in variants
    ]


def _last_part(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _trains(key: str) -> bool:
    return not key.startswith(_NON_TRAINING) and not is_seed(key)


def is_seed(key: str) -> bool:
    """Whether a setting is a seed, by its name."""
    return _last_part(key).endswith("seed")


def config_differences(runs: Iterable[ReportRun]) -> list[Difference]:
    """The settings that runs do not share, but for where their files are; runs of unknown settings have no part.

    Of those that are set to what another one is, only the ones that the other does not tell about already.
    """
    known = [run for run in runs if run.config]
    differing = [
        each
        for each in settings_by_value({run.name: run.config for run in known})
        if len(each.values) > 1 and each.key not in PLACES
    ]
    derived = frozenset.intersection(*(run.derived for run in known)) if known else frozenset()
    told = [each.values for each in differing if each.key not in derived]
    return [each for each in differing if each.key not in derived or each.values not in told]


def settings_by_value(settings: Mapping[str, Mapping[str, str]]) -> list[Difference]:
    """Every setting with its values, the most frequent last, of the settings of each run by its name."""
    by_key: dict[str, dict[str, list[str]]] = {key: {} for of_run in settings.values() for key in of_run}
    for key, names in by_key.items():
        for run, of_run in settings.items():
            names.setdefault(of_run.get(key, NOT_SET), []).append(run)
    return [Difference(key, sorted(by_key[key].items(), key=lambda item: len(item[1]))) for key in by_key]


def name_runs(names: Sequence[str], groups: Sequence[Group]) -> str:
    """Runs in words: whole groups by their label, and all of them as that."""
    wanted = set(names)
    if wanted == {run.name for group in groups for run in group.runs}:
        return "all runs"
    words = []
    for group in groups:
        members = [run.name for run in group.runs]
        if len(members) > 1 and wanted.issuperset(members):
            words.append(f"{group.label} ({len(members)} runs)")
        else:
            words += [name for name in members if name in wanted]
    return ", ".join(words)

"""What a group does better than another at the same seeds, so that what the seed decides cancels out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drpo_verl.metrics import names
from drpo_verl.report.groups import NOT_SET, Group, is_seed
from drpo_verl.report.load import LAST_STEPS, ReportRun, mean

MOST_BASELINES = 12
"""So many groups can be chosen to compare the others with."""

_RESAMPLES = 10_000
_CONFIDENCE = 0.95
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""

Seeds = tuple[str, ...]
"""The values of the seed settings in which the runs of a report differ."""


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of a group to the baseline over the seeds that both have.

    Attributes:
        group: the one that is compared.
        what: the quantity in words.
        differences: one for each seed, in the quantity's unit; positive where the group's is larger.
        mean: of the differences.
        interval: 95 % percentile bootstrap interval of the mean over seeds; None with a single one.
        is_share: whether the quantity is a part of a whole.
        early: whether a run of a pair ended early, so that the pair is compared where the shorter one ended.
    """

    group: Group
    what: str
    differences: Sequence[float]
    mean: float
    interval: tuple[float, float] | None
    is_share: bool
    early: bool

    @property
    def same_sign(self) -> int:
        """How many of the differences have the sign of their mean."""
        return sum(difference * self.mean > 0 for difference in self.differences)


@dataclass(frozen=True)
class _Quantity:
    """What is compared of two runs; None where one of them does not have it."""

    what: str
    is_share: bool
    of: Callable[[ReportRun, ReportRun], tuple[float, float] | None]


def compare(baseline: Group, groups: Sequence[Group]) -> list[PairedDifference]:
    """Compare groups with a baseline, pair by pair of runs with the same seeds.

    Args:
        baseline: one of the groups.
        groups: all of the report, whose order is kept.
    """
    known = [run for group in groups for run in group.runs if run.config]
    varying = sorted(
        key for key in {key for run in known for key in run.config if is_seed(key)}
        if len({run.config.get(key) for run in known}) > 1
    )  # fmt: skip
    sources = sorted({accuracy.source for run in known for accuracy in run.accuracies})
    quantities = [
        _Quantity("reward at the end", False, _last_rewards),
        _Quantity("reward, mean over the run", False, _mean_rewards),
        *(_Quantity(_held_out(source, sources), True, _accuracies(source)) for source in sources),
    ]
    compared = []
    for group in groups:
        pairs = [] if group is baseline else _pairs(group, baseline, varying)
        for quantity in quantities if pairs else ():
            of_pairs = [quantity.of(*pair) for pair in pairs]
            differences = [pair[0] - pair[1] for pair in of_pairs if pair is not None]
            if differences:
                centre, interval = bootstrap(differences)
                early = any(run.ended for pair in pairs for run in pair)
                compared.append(
                    PairedDifference(group, quantity.what, differences, centre, interval, quantity.is_share, early)
                )
    return compared


def _pairs(group: Group, baseline: Group, varying: Sequence[str]) -> list[tuple[ReportRun, ReportRun]]:
    """A run of each for every combination of seeds that both have; of several with the same ones, the first."""

    def by_seeds(runs: Iterable[ReportRun]) -> dict[Seeds, ReportRun]:
        firsts: dict[Seeds, ReportRun] = {}
        for run in runs:
            if run.config:
                firsts.setdefault(tuple(run.config.get(key, NOT_SET) for key in varying), run)
        return firsts

    of_group, of_baseline = by_seeds(group.runs), by_seeds(baseline.runs)
    return [(of_group[seeds], of_baseline[seeds]) for seeds in of_group if seeds in of_baseline]


def _common_rewards(run: ReportRun, baseline: ReportRun) -> list[tuple[float, float]]:
    """The rewards of two runs at the steps that both have, so that one that ended early is compared until then."""
    rewards, of_baseline = run.values(names.REWARD), baseline.values(names.REWARD)
    return [(rewards[step], of_baseline[step]) for step in sorted(rewards.keys() & of_baseline.keys())]


def _means(rewards: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    first, second = mean(pair[0] for pair in rewards), mean(pair[1] for pair in rewards)
    return None if first is None or second is None else (first, second)


def _last_rewards(run: ReportRun, baseline: ReportRun) -> tuple[float, float] | None:
    return _means(_common_rewards(run, baseline)[-LAST_STEPS:])


def _mean_rewards(run: ReportRun, baseline: ReportRun) -> tuple[float, float] | None:
    return _means(_common_rewards(run, baseline))


def _held_out(source: str, sources: Sequence[str]) -> str:
    return f"held-out accuracy{f' on {source}' if len(sources) > 1 else ''}"


def _accuracies(source: str) -> Callable[[ReportRun, ReportRun], tuple[float, float] | None]:
    """The held-out accuracies after the last step of training at which both runs have one."""

    def last(run: ReportRun, baseline: ReportRun) -> tuple[float, float] | None:
        measured, of_baseline = (
            {each.step: each.value for each in one.accuracies if each.source == source and each.step > 0}
            for one in (run, baseline)
        )
        both = measured.keys() & of_baseline.keys()
        return (measured[max(both)], of_baseline[max(both)]) if both else None

    return last


def bootstrap(differences: Sequence[float] | NDArray[np.float64]) -> tuple[float, tuple[float, float] | None]:
    """The mean of differences with its 95 % percentile bootstrap interval, which is the same whenever it is asked for.

    Args:
        differences: one for each pair; at least one.

    Returns:
        The mean and the interval; None instead of an interval for a single pair.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return float(values.mean()), None
    drawn = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(values.mean()), (float(low), float(high))


def student(differences: Sequence[float] | NDArray[np.float64]) -> tuple[float, tuple[float, float] | None]:
    """The mean of differences with its 95 % interval by Student's t, which holds for few pairs of normal differences.

    Args:
        differences: one for each pair; from one to ten.

    Returns:
        The mean and the interval; None instead of an interval for a single pair.

    Raises:
        ValueError: with more pairs, for which ``bootstrap`` serves.
    """
    values = np.asarray(differences, np.float64)
    if len(values) > len(_STUDENT) + 1:
        raise ValueError(f"{len(values)} pairs are more than the {len(_STUDENT) + 1} that are known here.")
    centre = float(values.mean())
    if len(values) < 2:
        return centre, None
    half = _STUDENT[len(values) - 2] * float(values.std(ddof=1)) / len(values) ** 0.5
    return centre, (centre - half, centre + half)

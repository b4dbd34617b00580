"""What the study in docs/study.md supports: which delta, anchor and method with which mismatch and staleness.

``evidence.json`` beside this module is made of the study's results by ``make study-page``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

PAGE = "docs/study.md"
POLICY = "a policy of two million parameters"
"""What the study has trained. It knows nothing of larger ones."""

_NEAR = 2.0
"""A mismatch or a number of updates that is further from all of the study's by this factor was not measured."""
_NO_MISMATCH = 1e-4
"""Mean abs(pi - mu) up to which the engines compute the same."""
_UPDATES = 4
"""Optimiser steps a rollout of the settings that differ in nothing but the mismatch."""
HELPS, HURTS, SAME, UNDECIDED = "helps", "hurts", "same", "undecided"
_WORDS = {HURTS: "hurts", HELPS: "helps", SAME: "ends about the same", UNDECIDED: "is undecided"}
_ANCHORS = {"mu": "around μ", "pi_old": "from π_old (anchor=recomputed)"}


@dataclass(frozen=True)
class Evidence:
    """What the study has found in one setting, about methods against no trust region at the same seeds.

    Attributes:
        rollout: the numbers of the rollout engine, as ``drpo_verl.configuration.precision.Numbers`` writes them.
        trainer: those of the trainer.
        updates: the optimiser steps a rollout.
        mismatch: mean abs(pi - mu) before any update.
        runs: the number of runs that it rests on.
        found: for each anchor, ``mu`` and ``pi_old``, and each delta: whether it ``helps``, ``hurts``, ends about the
            ``same`` (by an interval within 0.05 of reward), or is ``undecided`` by so few seeds.
        others: the same for other methods than DRPO with a fixed delta, as the study calls them.
    """

    rollout: str
    trainer: str
    updates: int
    mismatch: float
    runs: int
    found: Mapping[str, Mapping[float, str]]
    others: Mapping[str, str] = field(default_factory=dict)

    def sentence(self) -> str:
        """What was found, in one line."""
        anchors = [f"{_ANCHORS[anchor]} {_deltas(of_delta)}" for anchor, of_delta in self.found.items() if of_delta]
        others = "; ".join(f"{method}: {_WORDS[kind]}" for method, kind in self.others.items())
        updates = f"{self.updates} update{'s' if self.updates > 1 else ''} a rollout"
        drpo = f"DRPO {'; '.join(anchors)}. " if anchors else ""
        return (
            f"With {updates} and a mean abs(π − μ) of {_mean(self.mismatch)}, against no trust region: {drpo}"
            f"{f'Other methods: {others}. ' if others else ''}"
            f"Supported by {self.runs} runs of {POLICY} ({PAGE})."
        )


def _mean(mismatch: float) -> str:
    return f"{mismatch:.2g}" if mismatch > _NO_MISMATCH else "0"


def _deltas(of_delta: Mapping[float, str]) -> str:
    """As "hurts at δ 0.1, 0.2, ends about the same at δ 1, 12.5"; the smallest delta first."""
    at = {kind: [f"{delta:g}" for delta in sorted(of_delta) if of_delta[delta] == kind] for kind in _WORDS}
    return ", ".join(f"{words} at δ {', '.join(at[kind])}" for kind, words in _WORDS.items() if at[kind])


@cache
def all_evidence() -> tuple[Evidence, ...]:
    """What the study has found, setting by setting."""
    content: list[dict[str, Any]] = json.loads(files("drpo_verl").joinpath("evidence.json").read_text("utf-8"))
    return tuple(
        Evidence(**{**each, "found": {anchor: {float(delta): verdict for delta, verdict in of_delta.items()}
                                      for anchor, of_delta in each["found"].items()}})
        for each in content
    )  # fmt: skip


def for_mismatch(mismatch: float, known: Sequence[Evidence] | None = None) -> list[Evidence]:
    """What was found with about this much mismatch, for each number of updates that was studied with it.

    Args:
        mismatch: mean abs(pi - mu) before any update.
        known: of the study; None for what ``evidence.json`` has.

    Returns:
        By ascending number of updates; empty when no mismatch of the study is within a factor of two of it.
    """
    nearest: dict[int, Evidence] = {}
    for each in all_evidence() if known is None else known:
        other = nearest.get(each.updates)
        if _distance(each.mismatch, mismatch) <= math.log(_NEAR) + 1e-9 and (
            other is None or _distance(each.mismatch, mismatch) < _distance(other.mismatch, mismatch)
        ):
            nearest[each.updates] = each
    return [nearest[updates] for updates in sorted(nearest)]


def for_numbers(rollout: str, trainer: str, updates: int, known: Sequence[Evidence] | None = None) -> Evidence | None:
    """What was found with a rollout engine and a trainer that compute in these numbers.

    Args:
        rollout: the numbers of the rollout engine, as ``drpo_verl.configuration.precision.Numbers`` writes them.
        trainer: those of the trainer.
        updates: the optimiser steps a rollout.
        known: of the study; None for what ``evidence.json`` has.

    Returns:
        That with the nearest number of updates, of two as near that with more; None when all are further off than by a
        factor of two.
    """
    same = [
        each for each in (all_evidence() if known is None else known)
        if (each.rollout, each.trainer) == (rollout, trainer) and 1 / _NEAR <= each.updates / updates <= _NEAR
    ]  # fmt: skip
    return min(same, key=lambda each: (round(abs(math.log(each.updates / updates)), 6), -each.updates), default=None)


def studied_mismatches() -> str:
    """Which mismatches the study has, in words without a full stop."""
    means = dict.fromkeys(_mean(mismatch) for mismatch in sorted(each.mismatch for each in all_evidence()))
    return f"the study in {PAGE}, of {POLICY}, has means of abs(π − μ) of {', '.join(means)}"


def where_mu_hurts(known: Sequence[Evidence] | None = None) -> Evidence | None:
    """The setting with the smallest mismatch in which some delta around mu hurts; None without such.

    Args:
        known: of the study; None for what ``evidence.json`` has.
    """
    hurts = [each for each in (all_evidence() if known is None else known) if HURTS in each.found["mu"].values()]
    return min(hurts, key=lambda each: each.mismatch, default=None)


def too_tight(mismatch: float, known: Sequence[Evidence] | None = None) -> str | None:
    """At which delta DRPO around mu has hurt, in units of the mismatch, and what that is with another mismatch.

    Args:
        mismatch: mean abs(pi - mu) before any update.
        known: of the study; None for what ``evidence.json`` has.

    Returns:
        A sentence; None where the mismatch is not within a factor of two of those with which DRPO has hurt.
    """
    multiples = {
        each.mismatch: [delta / each.mismatch for delta, kind in each.found["mu"].items() if kind == HURTS]
        for each in (all_evidence() if known is None else known)
        if each.mismatch > _NO_MISMATCH and each.updates == _UPDATES
    }
    hurt = {found: times for found, times in sorted(multiples.items()) if times}
    if not hurt or not min(hurt) / _NEAR <= mismatch <= max(hurt) * _NEAR:
        return None
    least, most = min(map(min, hurt.values())), max(map(max, hurt.values()))
    where = "; ".join(f"{_range(min(times), max(times))} where it was {found:.2g}" for found, times in hurt.items())
    return (
        f"DRPO around μ has hurt at these multiples of the mean abs(π − μ): {where}. "
        f"{_range(least, most)} times are δ {_range(least * mismatch, most * mismatch)} here."
    )


def _range(least: float, most: float) -> str:
    """As "1.8 to 9", or one number where the two are the same."""
    return " to ".join(dict.fromkeys(f"{each:.2g}" for each in (least, most)))


def _distance(first: float, second: float) -> float:
    """How many e-foldings two mismatches are apart; those that are as good as none are the same."""
    return abs(math.log(max(first, _NO_MISMATCH) / max(second, _NO_MISMATCH)))

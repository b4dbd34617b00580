"""The results of studies/trust_region_map.yaml as the page reads them: settings, methods, differences."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from drpo_verl.metrics import names
from drpo_verl.report.pairs import bootstrap, student
from drpo_verl.study.cells import Cell, read_cells
from drpo_verl.study.plan import Plan, read_plan

PLAN, RESULTS = Path("studies/trust_region_map.yaml"), Path("docs/study")

BASELINE = "surrogate"
"""The method without a trust region, which the others are compared with."""

MISMATCHES = {
    "fp32": "fp32",
    "fp8": "fp8 weights",
    "fp8_kv": "bf16, fp8 KV cache",
    "int4": "int4 weights",
    "int3": "int3 weights",
    "int3_long_tail": "int3 weights, long tail",
}
"""What the rollout computes in, from the nearest to the trainer's fp32 to the furthest; another policy comes last."""
UPDATES = {"u1": 1, "u4": 4, "u4_async": 4, "u16": 16}
"""The optimiser steps a rollout."""
ASYNC = "u4_async"
"""The updates of a trainer that samplers do not wait for."""

ENGINE, DRIFT = names.INFERENCE_MISMATCH, names.POLICY_DRIFT
_DRPO = re.compile(r"drpo_(?P<decoupled>decoupled_)?(?P<delta>[\d.]+)")


@dataclass(frozen=True)
class Setting:
    """A rollout's numbers and its number of optimiser steps.

    Attributes:
        mismatch: the plan's name of the numbers, and of the policy where it is another.
        updates: the plan's name of the number of optimiser steps.
    """

    mismatch: str
    updates: str

    @property
    def steps(self) -> int:
        """The number of optimiser steps a rollout."""
        return UPDATES[self.updates]

    def __str__(self) -> str:
        """In words."""
        return f"{MISMATCHES[self.mismatch]}, {self.staleness}"

    @property
    def has_long_tail(self) -> bool:
        """Whether the policy has a long-tailed vocabulary."""
        return self.mismatch.endswith("long_tail")

    @property
    def staleness(self) -> str:
        """The number of optimiser steps in words."""
        asynchronous = ", asynchronous" if self.updates == ASYNC else ""
        return f"{self.steps} update{'s' if self.steps > 1 else ''}{asynchronous}"


@dataclass(frozen=True)
class Method:
    """A method of the plan.

    Attributes:
        name: in the plan.
        label: what it is called in pictures and tables.
        family: what it is beside in a picture.
        delta: of DRPO with a fixed one; None for the others.
    """

    name: str
    label: str
    family: str
    delta: float | None = None


AROUND_MU, FROM_PI_OLD = "DRPO around μ", "DRPO from π_old"
_OTHERS = (
    Method("dppo_binary_tv", "DPPO-TV 0.2", "masks around μ"),
    Method("cppo", "CPPO 0.15", "masks around μ"),
    Method("ipo", "IPO 0.1", "masks around μ"),
    Method("grpo_clip_higher", "GRPO 0.2/0.28", "ratio clipped, capped"),
    Method("pg_tis_1", "PG-TIS, C = 1", "ratio clipped, capped"),
)
_ADAPTIVE = (
    Method("drpo_adaptive", "adaptive δ", AROUND_MU),
    Method("mask_drpo", "Mask-DRPO 12.5", AROUND_MU),
    Method("mask_drpo_0.2_all", "Mask-DRPO 0.2, no region", AROUND_MU),
)


def methods_of(cells: Iterable[Cell]) -> dict[str, Method]:
    """The methods of cells in the order of the pictures: none, DRPO by falling delta and anchor, masks, ratio methods.

    Raises:
        ValueError: when one of them is not known here.
    """
    planned = dict.fromkeys(cell.choices["method"] for cell in cells)
    found: dict[str, list[Method]] = {AROUND_MU: [], FROM_PI_OLD: []}
    for name in planned:
        if match := _DRPO.fullmatch(name):
            family = FROM_PI_OLD if match["decoupled"] else AROUND_MU
            found[family].append(Method(name, f"δ = {match['delta']}", family, float(match["delta"])))
    for methods in found.values():
        methods.sort(key=lambda method: -(method.delta or 0))
    ordered = [
        Method(BASELINE, "no trust region", "none"), *found[AROUND_MU], *_ADAPTIVE, *found[FROM_PI_OLD], *_OTHERS,
    ]  # fmt: skip
    known = {method.name: method for method in ordered if method.name in planned}
    if unknown := planned.keys() - known.keys():
        raise ValueError(f"{', '.join(sorted(unknown))}: benchmarks/study_map.py does not say what they are called")
    return known


@dataclass(frozen=True)
class Difference:
    """A quantity of each seed, such as a difference of two cells' rewards at the end.

    Attributes:
        values: one for each seed that all of them have.
        mean: of them.
        interval: 95 %, by Student's t; None for a single seed.
        resampled: 95 %, by percentile bootstrap over the seeds, which is too narrow for so few.
    """

    values: Sequence[float]
    mean: float
    interval: tuple[float, float] | None
    resampled: tuple[float, float] | None


def difference_of(values: Sequence[float]) -> Difference | None:
    """The mean of values with its intervals; None without any."""
    if not values:
        return None
    mean, interval = student(values)
    return Difference(tuple(values), mean, interval, bootstrap(values)[1])


class StudyMap:
    """The cells of the study.

    Args:
        plan: the study.
        cells: all of the plan, also those that are not run yet.
    """

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self.plan = plan
        self.cells = tuple(cells)
        self.methods: Mapping[str, Method] = methods_of(cells)
        self._by_place = {(self.setting_of(cell), cell.choices["method"]): cell for cell in cells}

    @staticmethod
    def read(root: Path = Path()) -> StudyMap:
        """Read the plan and the committed results.

        Args:
            root: the folder of the repository.
        """
        plan = read_plan(root / PLAN)
        return StudyMap(plan, read_cells(plan, root / RESULTS))

    @staticmethod
    def setting_of(cell: Cell) -> Setting:
        """The setting of a cell."""
        return Setting(cell.choices["mismatch"], cell.choices["updates"])

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Those of the plan, by the number of updates, and from little mismatch to much."""
        found = dict.fromkeys(map(self.setting_of, self.cells))
        order = list(MISMATCHES)
        return tuple(sorted(found, key=lambda each: (each.steps, each.updates, order.index(each.mismatch))))

    def cell(self, setting: Setting, method: str) -> Cell | None:
        """The cell of a method in a setting; None when it is not planned."""
        return self._by_place.get((setting, method))

    def made(self, setting: Setting) -> list[tuple[Method, Cell]]:
        """The cells of a setting with at least one finished run, in the order of the methods."""
        cells = [(method, self.cell(setting, name)) for name, method in self.methods.items()]
        return [(method, cell) for method, cell in cells if cell is not None and cell.finished]

    def contrast(self, terms: Sequence[tuple[float, Setting, str]]) -> Difference | None:
        """A weighted sum of several cells' rewards at the end, over the seeds that all of them have.

        Args:
            terms: weight, setting and method of each.

        Returns:
            None when there is no such seed.
        """
        ends = []
        for weight, setting, method in terms:
            cell = self.cell(setting, method)
            ends.append((weight, cell.ends if cell is not None else {}))
        seeds = sorted(set.intersection(*(set(of_seed) for _, of_seed in ends)))
        return difference_of([sum(weight * of_seed[seed] for weight, of_seed in ends) for seed in seeds])

    def difference(self, setting: Setting, method: str, baseline: str = BASELINE) -> Difference | None:
        """The reward at the end of a method less that of another one in the same setting, seed by seed."""
        return self.contrast([(1.0, setting, method), (-1.0, setting, baseline)])

    def engine_mismatch(self, setting: Setting) -> float:
        """Mean abs(pi - mu) of the first mini-batches of the first three steps over all runs; NaN without any.

        The policies are still close to the one that all runs start from: it is what ``drpo-verl probe`` measures of it.
        """
        values = [run.mean(names.MISMATCH_MEAN, slice(3)) for _, cell in self.made(setting) for run in cell.finished]
        values = [value for value in values if math.isfinite(value)]
        return sum(values) / len(values) if values else math.nan

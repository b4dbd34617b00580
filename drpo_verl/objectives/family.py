"""The table of objectives: each method is one row, a geometry and an enforcement."""

from __future__ import annotations

from dataclasses import dataclass

from drpo_verl.objectives.enforcement import HARD_MASK, QUADRATIC, Enforcement
from drpo_verl.objectives.geometry import Geometry, binary_kl, probability


@dataclass(frozen=True)
class Objective:
    """A row of the table.

    Attributes:
        geometry: the distance of pi from mu.
        enforcement: what that distance does to the gradient.
        source: where the method is defined.
    """

    geometry: Geometry
    enforcement: Enforcement
    source: str


@dataclass(frozen=True)
class TrustRegion:
    """The settings of an objective.

    Attributes:
        delta_low: threshold for tokens whose probability falls (pi < mu); > 0, in the geometry's unit.
        delta_high: threshold for tokens whose probability rises (pi > mu); > 0.
        ratio_cap: C of truncated importance sampling, min(r, C) in the gradient's coefficient; None for no cap.
    """

    delta_low: float
    delta_high: float
    ratio_cap: float | None = None


_DPPO = "DPPO, arXiv 2602.04879, section 4"
_DRPO = "DRPO, arXiv 2606.09821, section 3"

OBJECTIVES: dict[str, Objective] = {
    "drpo": Objective(probability, QUADRATIC, _DRPO),
    "dppo_binary_tv": Objective(probability, HARD_MASK, _DPPO),
    "dppo_binary_kl": Objective(binary_kl, HARD_MASK, _DPPO),
}

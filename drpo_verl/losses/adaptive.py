"""A threshold that follows a target: delta such that a set share of the diverging tokens is outside the boundary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass
class DeltaController:
    """Multiplicative integral control of delta, one bounded step after each training step.

    Too many tokens outside: delta grows; too few: it shrinks. How far depends on how far off the share is, by at most
    ``max_step``.

    Attributes:
        delta: the threshold now, in the geometry's unit.
        target: the share of the diverging tokens to be outside; in (0, 1).
        gain: d log delta per relative error of the share; > 0.
        max_step: the largest factor by which delta changes in one step; > 1.
        delta_min: delta never falls below; > 0.
        delta_max: delta never rises above.
    """

    delta: float
    target: float
    gain: float
    max_step: float
    delta_min: float
    delta_max: float

    def update(self, outside: float, diverging: float) -> None:
        """Take the step that a training step's tokens ask for.

        Args:
            outside: how many tokens were outside the boundary.
            diverging: how many diverged at all; with none there is nothing to learn, and delta stays.
        """
        if diverging <= 0:
            return
        bound = math.log(self.max_step)
        step = min(max(self.gain * (outside / diverging / self.target - 1.0), -bound), bound)
        self.delta = min(max(self.delta * math.exp(step), self.delta_min), self.delta_max)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint: its delta, under the settings of this run."""
        self.delta = min(max(float(state["delta"]), self.delta_min), self.delta_max)

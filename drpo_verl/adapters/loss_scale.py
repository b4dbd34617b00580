"""What becomes of the loss scale of an fp16 trainer, which verl's FSDP engine does not log.

The gradients of fp16 are computed of a loss times a scale, so that small ones are not rounded to zero. An update whose
gradients overflow all the same is left out, and the scale is halved. A run that goes on like this learns nothing, while
all of its other metrics look as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drpo_verl.metrics.names import LOSS_SCALE, SKIPPED_UPDATES

_ACTOR = "actor/"
"""What verl puts before the names of what an actor returns."""


class LossScale:
    """Counts the updates of a trainer that its gradient scaler has left out."""

    def __init__(self) -> None:
        self._scale = 0.0
        self._updates = self._skipped = 0

    @contextmanager
    def watch(self, engine: Any) -> Iterator[None]:
        """Watch over one update.

        Args:
            engine: verl's; its ``scaler`` is a gradient scaler of torch, or None, or there is none.
        """
        scaler = getattr(engine, "scaler", None)
        if scaler is None or not scaler.is_enabled():
            yield
            return
        before = scaler.get_scale()
        yield
        self._scale = scaler.get_scale()
        self._updates += 1
        self._skipped += self._scale < before

    def take(self) -> dict[str, list[float]]:
        """Return the metrics of the updates since the last call, each as verl has those of an actor; none without."""
        if not self._updates:
            return {}
        metrics = {LOSS_SCALE: self._scale, SKIPPED_UPDATES: self._skipped / self._updates}
        self._updates = self._skipped = 0
        return {name.removeprefix(_ACTOR): [value] for name, value in metrics.items()}

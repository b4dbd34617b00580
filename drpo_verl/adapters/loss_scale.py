"""What becomes of the loss scale of an fp16 trainer, which none of verl's engines logs.

The gradients of fp16 are computed of a loss times a scale, so that small ones are not rounded to zero. An update whose
gradients overflow all the same is left out, and the scale is halved. A run that goes on like this learns nothing, while
all of its other metrics look as ever.

verl's FSDP engine leaves such an update out. Its Megatron engine ends the run instead, although Megatron's own scaler
looks for the scale by such overflows: it doubles it every thousand updates until there is one. Here it goes on, too.
"""

from __future__ import annotations

import math
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
            engine: verl's. Of an FSDP engine, ``scaler`` is a gradient scaler of torch, or None. Of a Megatron engine,
                ``optimizer`` has the scaler.
        """
        scaler: Any = getattr(engine, "scaler", None)
        optimizer: Any = getattr(engine, "optimizer", None)
        if scaler is not None and scaler.is_enabled():
            before = scaler.get_scale()
            yield
            self._count(scaler.get_scale(), skipped=scaler.get_scale() < before)
        elif getattr(getattr(optimizer, "config", None), "fp16", False):
            with _overflows_left_out(optimizer) as left_out:
                yield
            self._count(float(optimizer.get_loss_scale()), skipped=bool(left_out))
        else:
            yield

    def _count(self, scale: float, skipped: bool) -> None:
        self._scale = scale
        self._updates += 1
        self._skipped += skipped

    def take(self) -> dict[str, list[float]]:
        """Return the metrics of the updates since the last call, each as verl has those of an actor; none without."""
        if not self._updates:
            return {}
        metrics = {LOSS_SCALE: self._scale, SKIPPED_UPDATES: self._skipped / self._updates}
        self._updates = self._skipped = 0
        return {name.removeprefix(_ACTOR): [value] for name, value in metrics.items()}


@contextmanager
def _overflows_left_out(optimizer: Any) -> Iterator[list[float]]:
    """Yields the gradient norms of the updates of a Megatron optimizer that overflow; verl is told that they were made.

    Args:
        optimizer: its ``step`` returns whether it has updated, the gradient norm and the number of zeros.
    """
    step, left_out = optimizer.step, list[float]()

    def stepping() -> tuple[bool, float, Any]:
        updated, grad_norm, zeros = step()
        if updated:
            return updated, grad_norm, zeros
        left_out.append(math.inf)
        return True, math.inf, zeros  # the norm as verl's FSDP engine has it

    optimizer.step = stepping
    try:
        yield left_out
    finally:
        del optimizer.step  # its own again

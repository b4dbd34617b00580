"""Weights from a trainer to samplers in other processes of one machine, for verl's ``separate_async`` trainer.

verl's engines for it (NCCL, NIXL, ...) are for accelerators. Selected by
``rollout.checkpoint_engine.backend=shared_file`` with this module as ``custom_backend_module``.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any

import torch
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

BACKEND = "shared_file"
_FOLDER = Path("/dev/shm")
_POLL_SECONDS = 0.01


@CheckpointEngineRegistry.register(BACKEND)
class SharedFileCheckpointEngine(CheckpointEngine):
    """One file in shared memory for each weight sync, written by the trainer's first rank and read by every sampler.

    Args:
        bucket_size: of the other engines; the file holds the whole model.
        is_master: whether this is the trainer's first rank.
        timeout_seconds: for a sampler that waits for the file; a trainer that failed would leave it waiting for ever.
    """

    def __init__(self, bucket_size: int, is_master: bool = False, timeout_seconds: float = 600.0) -> None:
        self._is_master = is_master
        self._timeout_seconds = timeout_seconds
        self._path: Path | None = None

    def prepare(self) -> dict[str, Any]:
        """Name the file."""
        return {"path": str(_FOLDER / f"drpo_verl_weights_{uuid.uuid4().hex}.pt")} if self._is_master else {}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Tell every rank the file's name."""
        (path,) = (entry["path"] for entry in metadata if entry)
        return {"path": [path] * actor_wg_world_size}, {"path": [path] * rollout_world_size}

    def init_process_group(self, path: str) -> None:  # type: ignore[override]  # verl's takes what build_topology gives
        """Keep the file's name."""
        self._path = Path(path)

    def finalize(self) -> None:
        """Remove the file; called when every sampler has read it."""
        if self._is_master and self._path is not None:
            self._path.unlink(missing_ok=True)
        self._path = None

    @torch.no_grad()
    async def send_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> dict[str, float]:
        """Write the file, whole before it has its name.

        Args:
            weights: walked by all ranks, since gathering a sharded tensor takes all of them.
            global_steps: not needed.
        """
        assert self._path is not None
        state = {name: weight.detach().cpu().clone() for name, weight in weights if self._is_master}
        if self._is_master:
            written = self._path.with_suffix(".tmp")
            torch.save(state, written)
            written.rename(self._path)
        return {}

    async def receive_weights(  # type: ignore[override]  # verl's annotation is of a synchronous one
        self, global_steps: int | None = None
    ) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Read the file once it is there.

        Yields:
            Name and weight.

        Raises:
            TimeoutError: naming the file.
        """
        assert self._path is not None
        deadline = time.monotonic() + self._timeout_seconds
        while not self._path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"no weights in {self._path} after {self._timeout_seconds:.0f} s: the trainer failed"
                )
            await asyncio.sleep(_POLL_SECONDS)
        for name, weight in torch.load(self._path, map_location="cpu", weights_only=True).items():
            yield name, weight

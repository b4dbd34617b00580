"""Sends weights from a trainer to samplers in other processes, for verl's ``separate_async`` trainer.

verl's own engines (NCCL, NIXL, ...) are for accelerators. This one is selected by
``rollout.checkpoint_engine.backend=shared_file`` with this module as ``custom_backend_module``. On several machines,
``rollout.checkpoint_engine.engine_kwargs.shared_file.folder`` has to be a folder that all of them see.
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
_POLL_SECONDS = 0.01


@CheckpointEngineRegistry.register(BACKEND)
class SharedFileCheckpointEngine(CheckpointEngine):
    """Writes one file for each weight sync on the trainer's first rank, and reads it in every sampler.

    Args:
        bucket_size: ignored; the file holds the whole model.
        is_master: whether this is the trainer's first rank.
        folder: holds the file; shared memory by default.
        timeout_seconds: a sampler waits no longer for the file, which a trainer that failed never writes.
    """

    def __init__(
        self, bucket_size: int, is_master: bool = False, folder: str = "/dev/shm", timeout_seconds: float = 600.0
    ) -> None:
        self._is_master = is_master
        self._folder = Path(folder)
        self._timeout_seconds = timeout_seconds
        self._path: Path | None = None

    def prepare(self) -> dict[str, Any]:
        """Choose the name of the file."""
        if not self._is_master:
            return {}
        self._folder.mkdir(parents=True, exist_ok=True)
        return {"path": str(self._folder / f"drpo_verl_weights_{uuid.uuid4().hex}.pt")}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Tell every rank the file's name."""
        (path,) = (entry["path"] for entry in metadata if entry)
        return {"path": [path] * actor_wg_world_size}, {"path": [path] * rollout_world_size}

    def init_process_group(self, path: str) -> None:  # type: ignore[override]  # verl's takes what build_topology gives
        """Remember the file's name."""
        self._path = Path(path)

    def finalize(self) -> None:
        """Remove the file, after every sampler has read it."""
        if self._is_master and self._path is not None:
            self._path.unlink(missing_ok=True)
        self._path = None

    @torch.no_grad()
    async def send_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> dict[str, float]:
        """Write the file, which gets its name when it is complete.

        Args:
            weights: names and tensors; all ranks iterate over them, since gathering a sharded tensor takes all ranks.
            global_steps: ignored.
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
        """Wait for the file and read it.

        Yields:
            Name and weight.

        Raises:
            TimeoutError: the file does not appear in time.
        """
        assert self._path is not None
        deadline = time.monotonic() + self._timeout_seconds
        while not self._path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"no weights in {self._path} after {self._timeout_seconds:.0f} s: the trainer failed, or has "
                    "another folder"
                )
            await asyncio.sleep(_POLL_SECONDS)
        for name, weight in torch.load(self._path, map_location="cpu", weights_only=True).items():
            yield name, weight

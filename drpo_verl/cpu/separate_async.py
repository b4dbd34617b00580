"""verl's ``separate_async`` on CPUs: weights for rollout replicas that share no machine with the trainer.

verl's own checkpoint engines need GPUs, NPUs or RDMA. This one goes through files, in a folder that every node has:

    actor_rollout_ref.rollout.checkpoint_engine.backend=file
    actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=drpo_verl.cpu.separate_async
    '+actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.file.folder=${run.dir}/weights'
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import torch
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

_POLL_SECONDS = 0.02


@CheckpointEngineRegistry.register("file")
class FileCheckpointEngine(CheckpointEngine):
    """Rank 0 of the trainer writes a file for each weight sync; every rollout worker reads it.

    Args:
        bucket_size: verl's, in bytes. A model small enough for a CPU goes in one.
        is_master: of the trainer's rank 0.
        folder: that every node of the cluster has.
    """

    def __init__(self, bucket_size: int, is_master: bool = False, folder: str = "/dev/shm") -> None:
        self._is_master = is_master
        self._folder = Path(folder)
        self._path: Path | None = None

    def prepare(self) -> dict[str, Any]:
        """Name the file of the next sync."""
        if not self._is_master:
            return {}
        self._folder.mkdir(parents=True, exist_ok=True)
        return {"path": str(self._folder / f"{uuid.uuid4().hex}.pt")}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Tell everyone the name."""
        path = next(part["path"] for part in metadata if part)
        return {"path": [path] * actor_wg_world_size}, {"path": [path] * rollout_world_size}

    def init_process_group(self, path: str) -> None:
        """Take the name; there is no process group."""
        self._path = Path(path)

    def finalize(self) -> None:
        """Everyone has read it."""
        if self._is_master and self._path is not None:
            self._path.unlink(missing_ok=True)
        self._path = None

    @torch.no_grad()
    async def send_weights(
        self, weights: Generator[tuple[str, torch.Tensor], None, None], global_steps: int | None = None
    ) -> dict[str, Any]:
        """Write the weights."""
        assert self._path is not None
        state = {}
        for name, weight in weights:  # by every rank: gathering a sharded weight is a collective
            if self._is_master:
                state[name] = weight.detach().cpu().clone()
        if self._is_master:
            written = self._path.with_suffix(".part")
            torch.save(state, written)
            written.replace(self._path)
        return {}

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Read the weights, once they are all there."""
        assert self._path is not None
        while not self._path.exists():
            await asyncio.sleep(_POLL_SECONDS)
        for name, weight in torch.load(self._path, map_location="cpu", weights_only=True).items():
            yield name, weight

"""FSDP2 ranks of verl's actor in some precisions, outside Ray: for ranks.py. A case is a list of Hydra overrides."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import verl.workers.engine.fsdp.transformer_impl  # imported once, before there are ranks
import verl.workers.engine_workers  # noqa: F401
from actor_rank import MINI_BATCHES, ROWS, fixed_batch, rows_of_rank
from omegaconf import DictConfig
from verl.utils import fsdp_utils, tensordict_utils

from benchmarks.actor import batch, configuration
from benchmarks.actor import worker as actor

if TYPE_CHECKING:
    from ranks import Group


def _weights(module: Any) -> list[torch.Tensor]:
    return [parameter.full_tensor().clone() for parameter in module.parameters()]


def train(config: DictConfig) -> dict[str, Any]:
    """Train a fresh actor on two mini-batches; its metrics, and what is asked of it besides."""
    worker = actor(config)
    module, rank, world = worker.actor.engine.module, torch.distributed.get_rank(), torch.distributed.get_world_size()
    ids = torch.arange(12)[None]
    with torch.no_grad(), torch.autocast("cpu", worker.actor.engine._autocast_dtype):
        logits = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    rows = fixed_batch(worker.actor.model_config.hf_config.vocab_size, top_k=None)
    before, kept = _weights(module), fsdp_utils.fsdp2_sharded_save_to_cpu(module)
    data = batch([rows[i] for i in rows_of_rank(rank, world)], samples_per_update=ROWS // MINI_BATCHES)
    metrics = tensordict_utils.get(worker.actor.train_mini_batch(data), "metrics")
    moved = any(not torch.equal(old, new) for old, new in zip(before, _weights(module), strict=True))
    fsdp_utils.fsdp2_sharded_load_from_cpu(module, *kept)
    return {
        **{
            name: value for name, value in metrics.items() if name in ("grad_norm", "loss_scale", "skipped_update_frac")
        },
        "logits": str(logits.dtype),
        "moved": moved,
        "brought_back": all(torch.equal(old, new) for old, new in zip(before, _weights(module), strict=True)),
    }


def prepare(cases: dict[str, list[str]]) -> dict[str, DictConfig]:
    """Compose the configuration of each case."""
    return {name: configuration("actor_rollout_ref.rollout.n=1", *overrides) for name, overrides in cases.items()}


def main(group: Group, configurations: dict[str, DictConfig]) -> None:
    """Train each case of the group, and write what came of it on this rank."""
    result = {}
    for case in group.cases:
        config = copy.deepcopy(configurations[case])
        config.merge_with_dotlist([f"actor_rollout_ref.model.path={group.model}", *group.settings])
        result[case] = train(config)
    Path(group.folder, f"{torch.distributed.get_rank()}.json").write_text(json.dumps(result, default=float))
    torch.distributed.destroy_process_group()

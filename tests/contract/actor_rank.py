"""FSDP2 ranks of verl's actor on a fixed batch, outside Ray: for ranks.py. A case is a list of Hydra overrides."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import verl
import verl.workers.engine.fsdp.transformer_impl  # imported once, before there are ranks
import verl.workers.engine_workers
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.workers.utils.padding import response_from_nested

from benchmarks.actor import batch, configuration, sample
from benchmarks.actor import worker as actor
from drpo_verl.adapters.top_k import encode

if TYPE_CHECKING:
    from ranks import Group

ROWS, MINI_BATCHES = 16, 2


def fixed_batch(vocabulary: int, top_k: int | None) -> list[dict[str, torch.Tensor]]:
    """Rows of different lengths, whose behaviour policy is somewhere near a random one."""
    generator = torch.Generator().manual_seed(7)

    def ints(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator)

    rows = []
    for _ in range(ROWS):
        prompt, response = ints(0, vocabulary, int(ints(2, 6, 1))), ints(0, vocabulary, int(ints(1, 8, 1)))
        length = len(response)
        log_mu = -torch.log(torch.tensor(float(vocabulary))) + 0.7 * torch.randn(length, generator=generator)
        row_top_k = {}
        if top_k is not None:
            scores = torch.randn(length, vocabulary, generator=generator).log_softmax(-1)
            ids = torch.cat([response[:, None], scores.topk(top_k).indices], dim=-1)
            row_top_k = encode(len(prompt), ids.numpy(), scores.gather(-1, ids).double().numpy())
        advantage = torch.randn(1, generator=generator)
        rows.append({**sample(prompt, response, log_mu, advantage), **row_top_k})
    return rows


def rows_of_rank(rank: int, world: int) -> list[int]:
    """Such that each mini-batch holds the same rows, however many ranks share it."""
    per_mini_batch, per_rank = ROWS // MINI_BATCHES, ROWS // MINI_BATCHES // world
    return [m * per_mini_batch + rank * per_rank + i for m in range(MINI_BATCHES) for i in range(per_rank)]


def train(config: DictConfig, checkpoint: Path) -> dict[str, list[float]]:
    """Train a fresh actor on the batch's mini-batches; its metrics, and some of what it did and has become."""
    worker = actor(config)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    vocabulary = worker.actor.model_config.hf_config.vocab_size
    top_k = config.actor_rollout_ref.actor.policy_loss.top_k
    rows = fixed_batch(vocabulary, top_k=None if top_k is None else min(top_k, vocabulary))
    mine = [rows[i] for i in rows_of_rank(rank, world)]
    settings = config.actor_rollout_ref.actor
    data = batch(mine, samples_per_update=min(settings.ppo_mini_batch_size, ROWS))
    tensordict_utils.assign_non_tensor(
        data, epochs=settings.ppo_epochs, dataloader_kwargs={"shuffle": settings.shuffle}
    )  # as PPOTrainer._update_actor
    if not config.algorithm.rollout_correction.bypass_mode:
        data["old_log_probs"] = log_probs(worker, mine)  # as PPOTrainer._compute_old_log_prob
    scored, infer_batch = [0], worker.actor.engine.infer_batch

    def counting(scored_batch: TensorDict, **kwargs: Any) -> Any:
        scored.append(len(scored_batch))
        return infer_batch(scored_batch, **kwargs)

    worker.actor.engine.infer_batch = counting
    metrics = tensordict_utils.get(worker.actor.train_mini_batch(data), "metrics")
    worker.actor.engine.infer_batch = infer_batch
    result = {name: value for name, value in metrics.items() if "perf/" not in name}
    result["scored"] = sum(scored)
    controller = worker.actor._loss.controller
    if controller is not None:
        result["delta/after"] = controller.delta
        worker.save_checkpoint(str(checkpoint))
        controller.delta = 0.987
        worker.load_checkpoint(str(checkpoint))
        result["delta/loaded"] = controller.delta
    return result


def log_probs(worker: Any, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Those of the responses, by the call of verl's that recomputes pi_old."""
    data = batch(rows, samples_per_update=ROWS)
    tensordict_utils.assign_non_tensor(data, compute_loss=False)
    output = worker.actor.infer_batch(data)
    return response_from_nested(output["log_probs"], data["response_mask"])


def train_by_calls(config: DictConfig) -> list[dict[str, list[float]]]:
    """The metrics of three calls of a mini-batch each, as the separate asynchronous trainer makes them.

    Before the last one, the weights are brought to the rollout engine.
    """
    worker = actor(config)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    rows = fixed_batch(worker.actor.model_config.hf_config.vocab_size, top_k=None)
    mine = rows_of_rank(rank, world)
    half = len(mine) // MINI_BATCHES
    calls = []
    for part in (mine[:half], mine[half:], mine[:half]):
        if len(calls) == 2:
            worker.actor.on_weight_sync()
        data = batch([rows[i] for i in part], samples_per_update=ROWS // MINI_BATCHES)
        metrics = tensordict_utils.get(worker.actor.train_mini_batch(data), "metrics")
        calls.append({name: value for name, value in metrics.items() if "perf/" not in name})
    return calls


def prepare(cases: dict[str, list[str]]) -> dict[str, DictConfig]:
    """Compose the configuration of each case."""
    fixed = [
        "actor_rollout_ref.rollout.n=1", f"actor_rollout_ref.actor.ppo_mini_batch_size={ROWS // MINI_BATCHES}",
        # Divides what is left of a rank's samples, whatever the case.
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    ]  # fmt: skip
    return {name: configuration(*fixed, *overrides) for name, overrides in cases.items()}


def main(group: Group, configurations: dict[str, DictConfig]) -> None:
    """Train each case of the group, and write the metrics of this rank."""
    out = Path(group.folder)

    def config(case: str) -> DictConfig:
        config = copy.deepcopy(configurations[case])
        config.merge_with_dotlist([f"actor_rollout_ref.model.path={group.model}", *group.settings])
        return config

    metrics = {name: train(config(name), out / "checkpoint") for name in group.cases}
    rank = torch.distributed.get_rank()
    (out / "verl").write_text(f"{verl.__version__} {verl.__file__}")
    (out / f"{rank}.json").write_text(json.dumps(metrics, default=float))
    (out / f"calls_{rank}.json").write_text(json.dumps(train_by_calls(config("drpo")), default=float))
    torch.distributed.destroy_process_group()

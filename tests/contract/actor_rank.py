"""One FSDP2 rank of verl's actor on a fixed batch, outside Ray: run by test_actor_ranks.py.

Usage: RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python actor_rank.py MODEL OUT.json OVERRIDE...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from tensordict import TensorDict

from drpo_verl.integration import search_path

ROWS, MINI_BATCHES = 16, 2


def fixed_batch(vocabulary: int) -> list[dict[str, torch.Tensor]]:
    """Rows of different lengths, whose behaviour policy is somewhere near a random one."""
    generator = torch.Generator().manual_seed(7)

    def ints(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator)

    rows = []
    for _ in range(ROWS):
        prompt, response = ints(0, vocabulary, int(ints(2, 6, 1))), ints(0, vocabulary, int(ints(1, 8, 1)))
        length = len(response)
        log_mu = -torch.log(torch.tensor(float(vocabulary))) + 0.7 * torch.randn(length, generator=generator)
        rows.append(
            {
                "prompts": prompt,
                "responses": response,
                "input_ids": torch.cat([prompt, response]),
                "position_ids": torch.arange(len(prompt) + length),
                "response_mask": torch.ones(length, dtype=torch.int64),
                "loss_mask": torch.ones(length, dtype=torch.int64),
                "rollout_log_probs": log_mu,
                "old_log_probs": log_mu.clone(),
                "advantages": torch.randn(1, generator=generator).expand(length).clone(),
            }
        )
    return rows


def rows_of_rank(rank: int, world: int) -> list[int]:
    """Such that each mini-batch holds the same rows, however many ranks share it."""
    per_mini_batch, per_rank = ROWS // MINI_BATCHES, ROWS // MINI_BATCHES // world
    return [m * per_mini_batch + rank * per_rank + i for m in range(MINI_BATCHES) for i in range(per_rank)]


def main(model: str, out: Path, overrides: list[str]) -> None:
    """Train on the batch's mini-batches once and write the metrics."""
    search_path.register()
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        config = compose(
            "train",
            [
                "experiment=cpu_tiny",
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.rollout.n=1",
                *overrides,
            ],
        )
    from verl.utils import tensordict_utils
    from verl.workers.engine_workers import ActorRolloutRefWorker

    worker = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    rows = fixed_batch(vocabulary=worker.actor.model_config.hf_config.vocab_size)
    mine = [rows[i] for i in rows_of_rank(rank, world)]
    data = TensorDict(
        {name: torch.nested.as_nested_tensor([row[name] for row in mine], layout=torch.jagged) for name in mine[0]},
        batch_size=len(mine),
    )
    tensordict_utils.assign_non_tensor(
        data,
        global_batch_size=ROWS // MINI_BATCHES,
        mini_batch_size=ROWS // MINI_BATCHES,
        epochs=1,
        seed=0,
        dataloader_kwargs={"shuffle": False},
        temperature=1.0,
        calculate_entropy=False,
        distillation_use_topk=False,
        distillation_only=False,
    )
    metrics = tensordict_utils.get(worker.actor.train_mini_batch(data), "metrics")
    if rank == 0:
        out.write_text(
            json.dumps({name: value for name, value in metrics.items() if "perf/" not in name}, default=float)
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])

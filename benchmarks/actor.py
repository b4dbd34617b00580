"""One rank of verl's actor outside Ray, and a batch for it: for measurements and for contract tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor

from drpo_verl.configuration import search_path


def configuration(*overrides: str, experiment: str = "cpu_tiny") -> DictConfig:
    """A run's configuration."""
    search_path.register()
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        return compose("train", [f"experiment={experiment}", *overrides])


def worker(config: DictConfig) -> Any:
    """verl's actor worker with its model; ``torch.distributed`` is started from the environment's variables."""
    from verl.workers.engine_workers import ActorRolloutRefWorker

    made = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
    made.init_model()
    return made


def batch(rows: Sequence[dict[str, Tensor]], samples_per_update: int) -> TensorDict:
    """A step's batch as verl's trainer hands it to one rank of the actor.

    Args:
        rows: a sample each, with tensors by field.
        samples_per_update: of all ranks.
    """
    from verl.utils import tensordict_utils

    data = TensorDict(
        {name: torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged) for name in rows[0]},
        batch_size=len(rows),
    )
    tensordict_utils.assign_non_tensor(
        data,
        global_batch_size=samples_per_update,
        mini_batch_size=samples_per_update,
        epochs=1,
        seed=0,
        dataloader_kwargs={"shuffle": False},
        temperature=1.0,
        calculate_entropy=False,
        distillation_use_topk=False,
        distillation_only=False,
    )
    return data


def sample(prompt: Tensor, response: Tensor, log_behaviour: Tensor, advantage: Tensor) -> dict[str, Tensor]:
    """The fields of one sample.

    Args:
        prompt: token ids, ``[P]``.
        response: token ids, ``[R]``.
        log_behaviour: log mu of the response, ``[R]``.
        advantage: A, ``[1]``, the same for all of its tokens.
    """
    length = len(response)
    return {
        "prompts": prompt,
        "responses": response,
        "input_ids": torch.cat([prompt, response]),
        "position_ids": torch.arange(len(prompt) + length),
        "response_mask": torch.ones(length, dtype=torch.int64),
        "loss_mask": torch.ones(length, dtype=torch.int64),
        "rollout_log_probs": log_behaviour,
        "old_log_probs": log_behaviour,
        "advantages": advantage.expand(length).clone(),
    }

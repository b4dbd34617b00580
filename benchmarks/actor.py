"""One rank of verl's actor outside Ray, and a batch for it: for measurements and for contract tests."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor

from drpo_verl.configuration import search_path
from drpo_verl.models import tiny_model
from drpo_verl.models.tiny_model import TinyPolicyRecipe


def configuration(*overrides: str, experiment: str = "cpu_tiny") -> DictConfig:
    """A run's configuration."""
    search_path.register()
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        return compose("train", [f"experiment={experiment}", *overrides])


SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 2048,
}  # fmt: skip
"""Fields of a model's configuration that make it small enough for a CPU."""


def random_model(architecture: Mapping[str, Any] | TinyPolicyRecipe, folder: Path, device: str = "cpu") -> None:
    """Write a model with random weights, the same each time, and the tiny policy's tokenizer: nothing is downloaded.

    Args:
        architecture: the fields of its ``config.json``, ``model_type`` among them; or the recipe of a tiny policy,
            which is not warmed up.
        folder: where to.
        device: where the weights are drawn.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_model.build_tokenizer()
    torch.manual_seed(0)
    with torch.device(device):
        if isinstance(architecture, TinyPolicyRecipe):
            model = tiny_model.build_model(architecture, tokenizer)
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture), dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if device == "cuda":
        torch.cuda.empty_cache()


def be_the_only_rank() -> None:
    """Set the environment variables from which ``torch.distributed`` starts with one rank, on loopback."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    os.environ |= {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


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

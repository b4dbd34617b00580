"""Valid runs to start from: the demo, and runs on GPUs of the sizes of the papers'."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from functools import cache
from typing import Any

import models
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from drpo_verl.check.rule import evaluate
from drpo_verl.configuration.compose import compose_run
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.search_path import config_dir
from drpo_verl.preflight import RULES, check_run

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
MEGATRON = f"{ACTOR}.megatron"


def architecture(fields: dict[str, Any]) -> str:
    # Hydra's grammar for a dictionary; JSON's lists and words are the same in it.
    values = (f"{key}:{json.dumps(value)}" for key, value in fields.items())
    return f"check.architecture={{{','.join(values)}}}"


CPU = ("experiment=cpu_tiny",)
_GPU = (
    "trainer.nnodes=1", "trainer.n_gpus_per_node=8", "check.gpu_memory_gib=80", "check.cpus_per_node=96",
    "trainer.total_training_steps=400", "trainer.save_freq=20", "trainer.test_freq=10", "trainer.logger=[console,file]",
    "trainer.default_local_dir=/shared/checkpoints", f"{ROLLOUT}.name=vllm", f"{ROLLOUT}.n=8",
    "data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=16", "data.max_prompt_length=2048",
    "data.max_response_length=8192", f"{ACTOR}.optim.lr=1e-6", f"{ACTOR}.use_dynamic_bsz=true",
    f"{ACTOR}.ppo_max_token_len_per_gpu=10240", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=1",
    "reward.custom_reward_function.path=pkg://drpo_verl.rewards.reward",
    "reward.custom_reward_function.name=compute_score",
)  # fmt: skip
DENSE = (*_GPU, architecture(models.QWEN3_4B), f"{MODEL}.path=Qwen/Qwen3-4B-Base", "backend=fsdp2")
"""Qwen3-4B on a node of eight cards, FSDP2: the DRPO paper's smallest setting."""
PARTS = (
    *DENSE, f"{ACTOR}.use_dynamic_bsz=false", f"{ACTOR}.ppo_micro_batch_size_per_gpu=1",
)  # fmt: skip
"""The same with micro-batches cut by samples."""
EXPERTS = (
    *_GPU, architecture(models.QWEN3_30B_A3B), f"{MODEL}.path=Qwen/Qwen3-30B-A3B-Base", "model_engine=megatron",
    "trainer.nnodes=4", "data.train_batch_size=256", f"{ACTOR}.ppo_mini_batch_size=32", f"{ROLLOUT}.n=16",
    f"{MEGATRON}.tensor_model_parallel_size=4", f"{MEGATRON}.expert_model_parallel_size=8",
    f"{MEGATRON}.expert_tensor_parallel_size=1", f"{MEGATRON}.param_offload=true", f"{MEGATRON}.optimizer_offload=true",
    f"{MEGATRON}.override_transformer_config.recompute_granularity=full",
    f"+{MEGATRON}.override_transformer_config.recompute_method=uniform",
    f"+{MEGATRON}.override_transformer_config.recompute_num_layers=1",
    f"{ROLLOUT}.gpu_memory_utilization=0.6", "data.max_prompt_length=1024", "data.max_response_length=16384",
    f"{ACTOR}.ppo_max_token_len_per_gpu=17408",
)  # fmt: skip
"""Qwen3-30B-A3B on four nodes, Megatron: the DPPO paper's."""
ASYNC = (
    *DENSE, "trainer.v1.trainer_mode=separate_async", f"{ROLLOUT}.nnodes=1", f"{ROLLOUT}.n_gpus_per_node=8",
    f"{ROLLOUT}.checkpoint_engine.backend=nccl", "trainer.v1.separate_async.parameter_sync_step=4",
)  # fmt: skip


_GROUPS = {path.name for path in config_dir().iterdir() if path.is_dir()}


def _is_choice(override: str) -> bool:
    return override.partition("=")[0] in _GROUPS


@cache
def _composed(*overrides: str) -> bytes:
    return pickle.dumps(compose_run(overrides))  # which takes a fifth of the time of a deep copy to make one of


def composed(base: Sequence[str], *overrides: str) -> DictConfig:
    """A valid run with overrides. It is composed once, with its groups; values are put in as Hydra would parse them."""
    choices = {each.partition("=")[0]: each for each in (*base, *overrides) if _is_choice(each)}
    config: DictConfig = pickle.loads(_composed(*choices.values(), *(each for each in base if not _is_choice(each))))
    with open_dict(config):
        for override in OverridesParser.create().parse_overrides([each for each in overrides if not _is_choice(each)]):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=False)
    return config


def findings(base: tuple[str, ...], *overrides: str) -> list[Finding]:
    return check_run(RunConfig(composed(base, *overrides)))


findings_once = cache(findings)
"""The same, remembered: for what depends on nothing but the configuration."""


def findings_after(base: tuple[str, ...], overrides: Sequence[str], remedy: str, rule: str) -> list[Finding]:
    """What a rule finds once a remedy is typed behind the overrides: by Hydra, which refuses what is no setting."""
    changes = remedy.split()
    config = composed(base, *overrides, *filter(_is_choice, changes))
    values = OverridesParser.create().parse_overrides([each for each in changes if not _is_choice(each)])
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return evaluate([each for each in RULES if each.name == rule], RunConfig(config))

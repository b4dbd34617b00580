"""The settings that have to be numbers. They are verified before any rule computes with one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from drpo_verl.configuration.sections import ACTOR, MODEL, ROLLOUT


@dataclass(frozen=True)
class Number:
    """What a setting has to be.

    Args:
        default: the value of a configuration that does not have the setting, as in verl's own configuration.
        least: the smallest whole number that it may be; None where it may be any finite number.
    """

    default: float
    least: int | None = None

    @property
    def kind(self) -> str:
        """The kind of number, in words."""
        return "a number" if self.least is None else f"a whole number of at least {self.least}"

    def accepts(self, value: object) -> bool:
        """Whether a value is such a number."""
        return is_number(value) if self.least is None else is_whole(value, self.least)


class WrongNumberError(ValueError):
    """A rule needs a number that the configuration does not have in its place.

    Args:
        setting: the full name of the setting.
    """

    def __init__(self, setting: str) -> None:
        super().__init__(f"{setting} is not the number that it has to be.")
        self.setting = setting


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, least: float = -math.inf) -> bool:
    """Whether a value is a whole number, of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _of(section: str, least: int | None, **defaults: float) -> dict[str, Number]:
    return {f"{section}.{name}": Number(default, least) for name, default in defaults.items()}


NUMBERS: Mapping[str, Number] = {
    **_of("run", 1, updates_per_rollout=1),
    **_of("run", None, stall_seconds=900),
    **_of("trainer", 1, nnodes=1, n_gpus_per_node=8, total_epochs=30),
    **_of("trainer.v1.colocate_async", 1, parameter_sync_step=1),
    **_of("trainer.v1.separate_async", 1, parameter_sync_step=4),
    **_of("data", 1, train_batch_size=1024, max_prompt_length=512, max_response_length=512),
    **_of("algorithm.kl_ctrl", None, kl_coef=0.001),
    **_of(ACTOR, 1, ppo_mini_batch_size=256, ppo_epochs=1, ppo_max_token_len_per_gpu=16384,
          ulysses_sequence_parallel_size=1),
    **_of(ACTOR, None, clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0, kl_loss_coef=0.001,
          entropy_coeff=0.0),
    **_of(f"{ACTOR}.optim", None, lr=1e-6, clip_grad=1.0, lr_warmup_steps=-1),
    **_of(f"{ACTOR}.fsdp_config", 1, ulysses_sequence_parallel_size=1),
    **_of(f"{ACTOR}.megatron", 1, tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1,
          expert_model_parallel_size=1, expert_tensor_parallel_size=1, virtual_pipeline_model_parallel_size=1),
    **_of(MODEL, 0, lora_rank=0),
    **_of(f"{MODEL}.lora", 0, rank=0),
    **_of(ROLLOUT, 1, n=1, prompt_length=512, response_length=512, max_num_batched_tokens=8192, max_num_seqs=256,
          tensor_model_parallel_size=2, data_parallel_size=1, pipeline_model_parallel_size=1, expert_parallel_size=1,
          log_prob_max_token_len_per_gpu=16384),
    **_of(ROLLOUT, 0, nnodes=0, n_gpus_per_node=0),
    **_of(ROLLOUT, None, gpu_memory_utilization=0.5),
    **_of("actor_rollout_ref.ref", 1, log_prob_max_token_len_per_gpu=16384),
    **_of(f"{ROLLOUT}.val_kwargs", 1, n=1),
    **_of(f"{ROLLOUT}.val_kwargs", None, temperature=0.0),
}  # fmt: skip
"""Every setting that a rule computes with, by its full name."""

"""A composed configuration, read for the rules: settings by name, and the sizes that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drpo_verl.configuration.architecture import Architecture, read_architecture
from drpo_verl.configuration.finding import Finding, Level
from drpo_verl.configuration.method import LOSS_MODE, method_of

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
MODEL = "actor_rollout_ref.model"
CORRECTION = "algorithm.rollout_correction"

_COUNTS = (
    "run.updates_per_rollout",
    "trainer.nnodes",
    "trainer.total_epochs",
    "trainer.n_gpus_per_node",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    f"{ACTOR}.ppo_mini_batch_size",
    f"{ACTOR}.ppo_epochs",
    f"{ACTOR}.ppo_max_token_len_per_gpu",
    *(
        f"{ROLLOUT}.{name}"
        for name in (
            "n", "prompt_length", "response_length", "max_num_batched_tokens", "max_num_seqs",
            "tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size", "expert_parallel_size",
            "log_prob_max_token_len_per_gpu",
        )
    ),
)  # fmt: skip
_NUMBERS = (
    "run.stall_seconds", "algorithm.kl_ctrl.kl_coef", f"{ROLLOUT}.gpu_memory_utilization",
    *(
        f"{ACTOR}.{name}"
        for name in (
            "optim.lr", "optim.clip_grad", "clip_ratio", "clip_ratio_low", "clip_ratio_high", "kl_loss_coef",
            "entropy_coeff",
        )
    ),
)  # fmt: skip
_MEGATRON_COUNTS = tuple(
    f"{ACTOR}.megatron.{name}_parallel_size"
    for name in ("tensor_model", "pipeline_model", "context", "expert_model", "expert_tensor")
)


class Run:
    """What the rules read.

    Args:
        config: a whole run's, composed; any section may be missing.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.unresolved: dict[str, Exception] = {}
        """Settings whose interpolation failed, and why."""
        self.replaced: set[str] = set()
        """What of ``not_numbers`` was read, and a default in its place; whoever wants to know clears it before."""
        self._plain = self._resolve(config, "")

    def _resolve(self, node: Any, path: str) -> Any:
        # As OmegaConf.to_container(resolve=True), which stops at the first setting that does not resolve.
        if isinstance(node, DictConfig):
            return {str(key): self._child(node, key, f"{path}{key!s}") for key in node}
        if isinstance(node, ListConfig):
            return [self._child(node, index, f"{path}{index}") for index in range(len(node))]
        return node

    def _child(self, node: DictConfig | ListConfig, key: Any, path: str) -> Any:
        if OmegaConf.is_missing(node, key):
            return None
        try:
            value = node[key]
        except OmegaConfBaseException as error:
            self.unresolved[path] = error
            return None
        return self._resolve(value, f"{path}.")

    def get(self, name: str, default: Any = None) -> Any:
        """A setting's value.

        Args:
            name: with dots.
            default: for a setting that is null or not there.
        """
        node = self._plain
        for part in name.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return default if node is None else node

    def reference(self, name: str) -> str:
        """The text of the interpolation that a setting is; empty for one with a value of its own."""
        section, _, key = name.rpartition(".")
        node = OmegaConf.select(self.config, section)
        raw: Any = OmegaConf.to_container(node, resolve=False)
        return str(raw[key]) if OmegaConf.is_interpolation(node, key) else ""

    def number(self, name: str, default: float) -> float:
        """A setting that has to be a number; the default where it is not (see ``replaced``)."""
        value = self.get(name, default)
        self._notice(name)
        return value if is_number(value) else default

    def whole(self, name: str, default: int) -> int:
        """A setting that has to be a whole number of at least 1; the default where it is not (see ``replaced``)."""
        value = self.get(name, default)
        self._notice(name)
        return value if is_whole(value) and value >= 1 else default

    def _notice(self, name: str) -> None:
        if name in self.not_numbers:
            self.replaced.add(name)

    @cached_property
    def not_numbers(self) -> dict[str, str]:
        """The settings that are not the kind of number that they have to be, and what that is."""
        counts = (*_COUNTS, *(_MEGATRON_COUNTS if self.is_megatron else ()))
        given = {name: self.get(name) for name in (*counts, *_NUMBERS)}
        return {
            name: "a whole number of at least 1" if name in counts else "a number"
            for name, value in given.items()
            if value is not None and not (is_whole(value) and value >= 1 if name in counts else is_number(value))
        }

    def found(self, level: Level, name: str, message: str, remedy: str = "") -> Finding:
        """A finding about a setting with its value."""
        return Finding(level, name, self.get(name), message, remedy)

    def error(self, name: str, message: str, remedy: str) -> Finding:
        """See ``found``."""
        return self.found("error", name, message, remedy)

    def warning(self, name: str, message: str, remedy: str) -> Finding:
        """See ``found``."""
        return self.found("warning", name, message, remedy)

    def note(self, name: str, message: str, remedy: str = "") -> Finding:
        """See ``found``."""
        return self.found("note", name, message, remedy)

    # The hardware.

    @property
    def nodes(self) -> int:
        """Machines of the trainer."""
        return self.whole("trainer.nnodes", 1)

    @property
    def gpus_per_node(self) -> int:
        """Cards, or worker slots on a CPU, of each of them."""
        return self.whole("trainer.n_gpus_per_node", 8)

    @property
    def world(self) -> int:
        """Ranks of the trainer."""
        return self.nodes * self.gpus_per_node

    @property
    def on_cpu(self) -> bool:
        """Whether the run asks for no accelerator."""
        return self.get("trainer.device", "cuda") == "cpu"

    # The training engine.

    @property
    def strategy(self) -> str:
        """verl's name of the actor's engine."""
        return str(self.get(f"{ACTOR}.strategy", "fsdp"))

    @property
    def is_megatron(self) -> bool:
        """Whether the actor's sizes are Megatron's."""
        return self.strategy == "megatron"

    @property
    def is_fsdp(self) -> bool:
        """Whether they are FSDP's."""
        return self.strategy in ("fsdp", "fsdp2")

    @property
    def engine(self) -> str:
        """The name of the section with the engine's settings."""
        return f"{ACTOR}.{'fsdp_config' if self.is_fsdp else self.strategy}"

    @property
    def tensor_parallel(self) -> int:
        """Megatron's; 1 elsewhere."""
        return self.whole(f"{self.engine}.tensor_model_parallel_size", 1) if self.is_megatron else 1

    @property
    def pipeline_parallel(self) -> int:
        """Megatron's; 1 elsewhere."""
        return self.whole(f"{self.engine}.pipeline_model_parallel_size", 1) if self.is_megatron else 1

    @property
    def context_parallel(self) -> int:
        """Megatron's context parallel, or FSDP's Ulysses sequence parallel size."""
        if self.is_megatron:
            return self.whole(f"{self.engine}.context_parallel_size", 1)
        # verl: the actor's, deprecated, wins when it is above 1.
        actors = self.whole(f"{ACTOR}.ulysses_sequence_parallel_size", 1)
        return actors if actors > 1 else self.whole(f"{self.engine}.ulysses_sequence_parallel_size", 1)

    @property
    def expert_parallel(self) -> int:
        """Megatron's; 1 elsewhere."""
        return self.whole(f"{self.engine}.expert_model_parallel_size", 1) if self.is_megatron else 1

    @property
    def expert_tensor_parallel(self) -> int:
        """Megatron's, which is its tensor parallel size unless set; 1 elsewhere."""
        if not self.is_megatron:
            return 1
        return self.whole(f"{self.engine}.expert_tensor_parallel_size", self.tensor_parallel)

    @property
    def data_parallel(self) -> int:
        """Ranks that take different samples (verl's ``get_data_parallel_size``)."""
        return max(1, self.world // (self.tensor_parallel * self.pipeline_parallel * self.context_parallel))

    # The batch.

    @property
    def prompts(self) -> int:
        """Prompts of a rollout."""
        return self.whole("data.train_batch_size", 1024)

    @property
    def responses(self) -> int:
        """Responses to each prompt."""
        return self.whole(f"{ROLLOUT}.n", 1)

    @property
    def mini_batch(self) -> int:
        """Prompts of an optimiser step."""
        return self.whole(f"{ACTOR}.ppo_mini_batch_size", 256)

    @property
    def mini_batch_per_rank(self) -> int | None:
        """Samples of an optimiser step on a rank; None when they do not divide."""
        samples = self.mini_batch * self.responses
        return None if samples % self.data_parallel else samples // self.data_parallel

    @property
    def dynamic_batch(self) -> bool:
        """Whether micro-batches are cut by tokens."""
        return bool(self.get(f"{ACTOR}.use_dynamic_bsz", False))

    @property
    def micro_batch(self) -> int | None:
        """Samples of a micro-batch on a rank; None when they are cut by tokens, or not set."""
        value = self.get(f"{ACTOR}.ppo_micro_batch_size_per_gpu")
        return value if not self.dynamic_batch and is_whole(value) and value >= 1 else None

    @property
    def epochs(self) -> int:
        """Passes over a rollout."""
        return self.whole(f"{ACTOR}.ppo_epochs", 1)

    @property
    def prompt_length(self) -> int:
        """Tokens of the longest prompt."""
        return self.whole(f"{ROLLOUT}.prompt_length", self.whole("data.max_prompt_length", 512))

    @property
    def response_length(self) -> int:
        """Tokens of the longest response."""
        return self.whole(f"{ROLLOUT}.response_length", self.whole("data.max_response_length", 512))

    @property
    def micro_batch_tokens(self) -> int | None:
        """The most tokens that a card has at once in an update; None when no micro-batch is set."""
        if self.dynamic_batch:
            return self.whole(f"{ACTOR}.ppo_max_token_len_per_gpu", 16384)
        if self.micro_batch is None:
            return None
        return math.ceil(self.micro_batch * (self.prompt_length + self.response_length) / self.context_parallel)

    # The trainer.

    @property
    def trainer_mode(self) -> str:
        """verl's: sync, colocate_async or separate_async."""
        return str(self.get("trainer.v1.trainer_mode", "sync"))

    @property
    def sync_step(self) -> int:
        """Local updates between two weight syncs of the separate trainer; 1 elsewhere."""
        return self.whole(f"trainer.v1.{self.trainer_mode}.parameter_sync_step", 1)

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser steps on the samples of one rollout (of ``train_batch_size`` prompts)."""
        return self.sync_step * math.ceil(self.prompts / self.sync_step / self.mini_batch) * self.epochs

    @property
    def bypass(self) -> bool:
        """Whether old_log_probs are the rollout's."""
        return bool(self.get(f"{CORRECTION}.bypass_mode", False))

    @property
    def needs_reference(self) -> bool:
        """As verl's ``need_reference_policy``."""
        return bool(self.get("algorithm.use_kl_in_reward", False) or self.get(f"{ACTOR}.use_kl_loss", False))

    # The rollout.

    @property
    def standalone_rollout(self) -> bool:
        """Whether the rollout has cards of its own."""
        return self.trainer_mode == "separate_async"

    @property
    def hybrid_rollout(self) -> bool:
        """Whether a rollout engine shares the trainer's cards."""
        return not self.standalone_rollout or bool(self.get("actor_rollout_ref.hybrid_engine", True))

    @property
    def rollout_tensor_parallel(self) -> int:
        """Of the rollout engine."""
        return self.whole(f"{ROLLOUT}.tensor_model_parallel_size", 2)

    @property
    def rollout_data_parallel(self) -> int:
        """Of one replica of the rollout engine."""
        return self.whole(f"{ROLLOUT}.data_parallel_size", 1)

    @property
    def replica_size(self) -> int:
        """Cards of one replica of the rollout engine."""
        return (
            self.rollout_tensor_parallel
            * self.rollout_data_parallel
            * self.whole(f"{ROLLOUT}.pipeline_model_parallel_size", 1)
        )

    @property
    def rollout_world(self) -> int:
        """Cards that the rollout has to itself, or shares with the trainer."""
        if not self.standalone_rollout:
            return self.world
        return self.whole(f"{ROLLOUT}.nnodes", 1) * self.whole(f"{ROLLOUT}.n_gpus_per_node", self.gpus_per_node)

    @property
    def max_model_len(self) -> int | None:
        """Tokens of the rollout engine's context: the setting, else the model's; None when neither is known."""
        value = self.get(f"{ROLLOUT}.max_model_len")
        if is_whole(value):
            return int(value)
        return self.architecture.max_positions if self.architecture else None

    # The method and the model.

    @property
    def method(self) -> str | None:
        """What the run goes by."""
        return method_of(self.config)

    @property
    def loss_mode(self) -> str:
        """The policy loss."""
        return str(self.get(LOSS_MODE, "vanilla"))

    @property
    def lora_rank(self) -> int:
        """Of the training engine in use; 0 without adapters."""
        return self.whole(f"{MODEL}.lora.rank" if self.is_megatron else f"{MODEL}.lora_rank", 0)

    @cached_property
    def architecture(self) -> Architecture | None:
        """The model's; None when it is not known here."""
        return read_architecture(self.get("check.architecture"), self.get(f"{MODEL}.path"))

    def walk(self, name: str) -> Iterator[tuple[str, Any]]:
        """The settings of a section, one level deep, as full names and values."""
        section = self.get(name, {})
        yield from ((f"{name}.{key}", value) for key, value in section.items())


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)

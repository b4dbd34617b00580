"""A run's composed configuration as the rules read it: its settings, and the sizes that follow from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property
from typing import Generic, TypeVar

from drpo_verl.configuration.architecture import Architecture, read_architecture
from drpo_verl.configuration.method import LOSS_MODE, method_of
from drpo_verl.configuration.numbers import NUMBERS, is_whole
from drpo_verl.configuration.sections import ACTOR, CORRECTION, MODEL, ROLLOUT
from drpo_verl.configuration.settings import Settings

WORKER_CPUS = 3
"""What verl's resource pool reserves in Ray for each worker (``ResourcePoolManager.max_colocate_count``)."""
DRIVER_CPUS = 8
"""What a node has in Ray beside the workers, for the trainer's own process, agent loops and rewards."""
_Value = TypeVar("_Value")


class _Derived(Generic[_Value]):
    """A property in one line: an attribute that is computed from the settings, and documented below it."""

    def __init__(self, compute: Callable[[RunConfig], _Value]) -> None:
        self._compute = compute

    def __get__(self, run: RunConfig, owner: type[RunConfig]) -> _Value:
        return self._compute(run)


def _whole(name: str) -> _Derived[int]:
    return _Derived(lambda run: run.whole(name))


class RunConfig(Settings):
    """A run's configuration.

    The properties that are numbers raise ``WrongNumberError`` when a setting that they are computed from is none.
    """

    nodes = _whole("trainer.nnodes")
    """How many machines the trainer has."""
    gpus_per_node = _whole("trainer.n_gpus_per_node")
    """How many cards (worker slots, on a CPU) the trainer has on each of its machines."""
    prompts = _whole("data.train_batch_size")
    """How many prompts a rollout has."""
    responses = _whole(f"{ROLLOUT}.n")
    """How many responses are sampled to each prompt."""
    mini_batch = _whole(f"{ACTOR}.ppo_mini_batch_size")
    """How many prompts an optimiser step takes."""
    epochs = _whole(f"{ACTOR}.ppo_epochs")
    """How many times a run goes over each rollout."""
    rollout_tensor_parallel = _whole(f"{ROLLOUT}.tensor_model_parallel_size")
    """The tensor parallel size of the rollout engine."""
    rollout_data_parallel = _whole(f"{ROLLOUT}.data_parallel_size")
    """The data parallel size of one replica of the rollout engine."""
    rollout_expert_parallel = _whole(f"{ROLLOUT}.expert_parallel_size")
    """The expert parallel size of the rollout engine."""

    def changed(self, override: str) -> RunConfig:
        """The configuration with other values of some settings, for a rule that tries a remedy out.

        Args:
            override: as in ``Finding.overrides``. Settings that refer to a changed one keep their values.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        other = copy.copy(self)
        other._values = copy.deepcopy(self._values)
        for each in OverridesParser.create().parse_overrides(override.split(" ")):
            section, _, key = each.key_or_group.rpartition(".")
            node = other._values
            for part in section.split("."):
                node = node.setdefault(part, {})
            node[key] = each.value()
        return other

    # The hardware.

    world = _Derived(lambda run: run.nodes * run.gpus_per_node)
    """How many ranks the trainer has."""
    on_cpu = _Derived(lambda run: run.get("trainer.device", "cuda") == "cpu")
    """Whether the run asks for no accelerator."""

    # The training engine.

    strategy = _Derived(lambda run: str(run.get(f"{ACTOR}.strategy", "fsdp")))
    """The name that verl gives the actor's training engine."""
    is_megatron = _Derived(lambda run: run.strategy == "megatron")
    """Whether Megatron trains the actor."""
    is_fsdp = _Derived(lambda run: run.strategy in ("fsdp", "fsdp2"))
    """Whether FSDP or FSDP2 trains the actor."""
    engine = _Derived(lambda run: f"{ACTOR}.{'fsdp_config' if run.is_fsdp else run.strategy}")
    """The full name of the section with the training engine's settings."""

    def _megatron_size(self, name: str, default: int = 1) -> int:
        return self.whole(f"{ACTOR}.megatron.{name}_parallel_size", default) if self.is_megatron else 1

    tensor_parallel = _Derived(lambda run: run._megatron_size("tensor_model"))
    """The tensor parallel size of Megatron; 1 for other training engines."""
    pipeline_parallel = _Derived(lambda run: run._megatron_size("pipeline_model"))
    """The pipeline parallel size of Megatron; 1 for other training engines."""
    expert_parallel = _Derived(lambda run: run._megatron_size("expert_model"))
    """The expert parallel size of Megatron; 1 for other training engines."""
    expert_tensor_parallel = _Derived(lambda run: run._megatron_size("expert_tensor", run.tensor_parallel))
    """The tensor parallel size of Megatron's experts, by default that of all else; 1 for other engines."""

    @property
    def ulysses_setting(self) -> str:
        """The setting that FSDP's sequence parallel size is read from: verl prefers the deprecated one above 1."""
        deprecated = f"{ACTOR}.ulysses_sequence_parallel_size"
        return deprecated if self.whole(deprecated) > 1 else f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size"

    @property
    def context_parallel(self) -> int:
        """How many ranks share a sequence: Megatron's context parallel, or FSDP's Ulysses sequence parallel size."""
        return self._megatron_size("context") if self.is_megatron else self.whole(self.ulysses_setting)

    @property
    def data_parallel(self) -> int:
        """How many groups of ranks take different samples (verl's ``get_data_parallel_size``)."""
        return max(1, self.world // (self.tensor_parallel * self.pipeline_parallel * self.context_parallel))

    # The batch.

    @property
    def mini_batch_per_rank(self) -> int | None:
        """How many samples a rank has of an optimiser step; None when they do not divide."""
        samples = self.mini_batch * self.responses
        return None if samples % self.data_parallel else samples // self.data_parallel

    dynamic_batch = _Derived(lambda run: bool(run.get(f"{ACTOR}.use_dynamic_bsz", False)))
    """Whether micro-batches are cut by tokens."""

    @property
    def micro_batch(self) -> int | None:
        """How many samples a rank has of a micro-batch; None when they are cut by tokens, or not set."""
        value = self.get(f"{ACTOR}.ppo_micro_batch_size_per_gpu")
        return value if not self.dynamic_batch and is_whole(value, 1) else None

    prompt_length = _Derived(lambda run: run.whole(f"{ROLLOUT}.prompt_length", run.whole("data.max_prompt_length")))
    """How many tokens the longest prompt has."""

    @property
    def response_length(self) -> int:
        """How many tokens the longest response has."""
        return self.whole(f"{ROLLOUT}.response_length", self.whole("data.max_response_length"))

    sequence_length = _Derived(lambda run: run.prompt_length + run.response_length)
    """How many tokens the longest prompt and response have together."""

    @property
    def micro_batch_tokens(self) -> int | None:
        """The most tokens that a card has at once in an update; None when no micro-batch is set."""
        if self.dynamic_batch:
            return self.whole(f"{ACTOR}.ppo_max_token_len_per_gpu")
        if self.micro_batch is None:
            return None
        return math.ceil(self.micro_batch * self.sequence_length / self.context_parallel)

    # The trainer.

    trainer_mode = _Derived(lambda run: str(run.get("trainer.v1.trainer_mode", "sync")))
    """The mode of verl's V1 trainer: sync, colocate_async or separate_async."""

    @property
    def sync_step(self) -> int:
        """How many updates an asynchronous trainer makes between two weight syncs; 1 for the synchronous one."""
        name = f"trainer.v1.{self.trainer_mode}.parameter_sync_step"
        return self.whole(name) if name in NUMBERS else 1

    @property
    def updates_per_rollout(self) -> int:
        """How many optimiser steps are made on the samples of one rollout (of ``train_batch_size`` prompts)."""
        return self.sync_step * math.ceil(self.prompts / self.sync_step / self.mini_batch) * self.epochs

    bypass = _Derived(lambda run: bool(run.get(f"{CORRECTION}.bypass_mode", False)))
    """Whether the rollout engine's log-probabilities are taken for pi_old."""

    @property
    def needs_reference(self) -> bool:
        """Whether the run has a reference model (verl's ``need_reference_policy``)."""
        return bool(self.get("algorithm.use_kl_in_reward", False) or self.get(f"{ACTOR}.use_kl_loss", False))

    # The rollout.

    standalone_rollout = _Derived(lambda run: run.trainer_mode == "separate_async")
    """Whether the rollout engine has cards of its own."""

    @property
    def hybrid_rollout(self) -> bool:
        """Whether a rollout engine shares the trainer's cards."""
        return not self.standalone_rollout or bool(self.get("actor_rollout_ref.hybrid_engine", True))

    @property
    def replica_size(self) -> int:
        """How many cards one replica of the rollout engine has."""
        stages = self.whole(f"{ROLLOUT}.pipeline_model_parallel_size")
        return self.rollout_tensor_parallel * self.rollout_data_parallel * stages

    rollout_gpus_per_node = _Derived(lambda run: run.whole(f"{ROLLOUT}.n_gpus_per_node") or run.gpus_per_node)
    """How many cards a machine of the rollout engine has."""

    @property
    def rollout_world(self) -> int:
        """How many cards the rollout engine has to itself, or shares with the trainer."""
        if not self.standalone_rollout:
            return self.world
        return max(1, self.whole(f"{ROLLOUT}.nnodes")) * self.rollout_gpus_per_node

    @property
    def max_model_len(self) -> int | None:
        """How many tokens the rollout engine's context has, by default the model's; None when neither is known."""
        value = self.get(f"{ROLLOUT}.max_model_len")
        if is_whole(value):
            return int(value)
        return self.architecture.max_positions if self.architecture else None

    # The method and the model.

    method = _Derived(lambda run: method_of(run.composed))
    """The method that the run goes by."""
    loss_mode = _Derived(lambda run: str(run.get(LOSS_MODE, "vanilla")))
    """The name of the policy loss."""
    lora_rank = _Derived(lambda run: run.whole(f"{MODEL}.lora.rank" if run.is_megatron else f"{MODEL}.lora_rank"))
    """The rank of the adapters that the training engine in use trains; 0 without adapters."""

    @cached_property
    def architecture(self) -> Architecture | None:
        """The model's architecture; None when it is not known here."""
        return read_architecture(self.get("check.architecture"), self.get(f"{MODEL}.path"))

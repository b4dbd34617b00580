"""A run's composed configuration as the rules read it: its settings, and the sizes that follow from them."""

from __future__ import annotations

import copy
import math
from functools import cached_property

from drpo_verl.configuration.architecture import Architecture, read_architecture
from drpo_verl.configuration.method import LOSS_MODE, method_of
from drpo_verl.configuration.numbers import NUMBERS, is_whole
from drpo_verl.configuration.sections import ACTOR, CORRECTION, MODEL, ROLLOUT
from drpo_verl.configuration.settings import Settings

WORKER_CPUS = 3
"""What verl's resource pool reserves in Ray for each worker (``ResourcePoolManager.max_colocate_count``)."""
DRIVER_CPUS = 8
"""What a node has in Ray beside the workers, for the trainer's own process, agent loops and rewards."""


class _Whole:
    """An attribute that is the whole number in a setting."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: Settings, owner: type[Settings]) -> int:
        return run.whole(self._name)


class RunConfig(Settings):
    """A run's configuration.

    The properties that are numbers raise ``WrongNumberError`` when a setting that they are computed from is none.
    """

    nodes = _Whole("trainer.nnodes")
    """How many machines the trainer has."""
    gpus_per_node = _Whole("trainer.n_gpus_per_node")
    """How many cards (worker slots, on a CPU) the trainer has on each of its machines."""
    prompts = _Whole("data.train_batch_size")
    """How many prompts a rollout has."""
    responses = _Whole(f"{ROLLOUT}.n")
    """How many responses are sampled to each prompt."""
    mini_batch = _Whole(f"{ACTOR}.ppo_mini_batch_size")
    """How many prompts an optimiser step takes."""
    epochs = _Whole(f"{ACTOR}.ppo_epochs")
    """How many times a run goes over each rollout."""
    rollout_tensor_parallel = _Whole(f"{ROLLOUT}.tensor_model_parallel_size")
    """The tensor parallel size of the rollout engine."""
    rollout_data_parallel = _Whole(f"{ROLLOUT}.data_parallel_size")
    """The data parallel size of one replica of the rollout engine."""
    rollout_expert_parallel = _Whole(f"{ROLLOUT}.expert_parallel_size")
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

    @property
    def world(self) -> int:
        """How many ranks the trainer has."""
        return self.nodes * self.gpus_per_node

    @property
    def on_cpu(self) -> bool:
        """Whether the run asks for no accelerator."""
        return self.get("trainer.device", "cuda") == "cpu"

    # The training engine.

    @property
    def strategy(self) -> str:
        """The name that verl gives the actor's training engine."""
        return str(self.get(f"{ACTOR}.strategy", "fsdp"))

    @property
    def is_megatron(self) -> bool:
        """Whether Megatron trains the actor."""
        return self.strategy == "megatron"

    @property
    def is_fsdp(self) -> bool:
        """Whether FSDP or FSDP2 trains the actor."""
        return self.strategy in ("fsdp", "fsdp2")

    @property
    def engine(self) -> str:
        """The full name of the section with the training engine's settings."""
        return f"{ACTOR}.{'fsdp_config' if self.is_fsdp else self.strategy}"

    def _megatron_size(self, name: str, default: int = 1) -> int:
        return self.whole(f"{ACTOR}.megatron.{name}_parallel_size", default) if self.is_megatron else 1

    @property
    def tensor_parallel(self) -> int:
        """The tensor parallel size of Megatron; 1 for other training engines."""
        return self._megatron_size("tensor_model")

    @property
    def pipeline_parallel(self) -> int:
        """The pipeline parallel size of Megatron; 1 for other training engines."""
        return self._megatron_size("pipeline_model")

    @property
    def expert_parallel(self) -> int:
        """The expert parallel size of Megatron; 1 for other training engines."""
        return self._megatron_size("expert_model")

    @property
    def expert_tensor_parallel(self) -> int:
        """The tensor parallel size of Megatron's experts, by default that of all else; 1 for other engines."""
        return self._megatron_size("expert_tensor", self.tensor_parallel)

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

    @property
    def dynamic_batch(self) -> bool:
        """Whether micro-batches are cut by tokens."""
        return bool(self.get(f"{ACTOR}.use_dynamic_bsz", False))

    @property
    def micro_batch(self) -> int | None:
        """How many samples a rank has of a micro-batch; None when they are cut by tokens, or not set."""
        value = self.get(f"{ACTOR}.ppo_micro_batch_size_per_gpu")
        return value if not self.dynamic_batch and is_whole(value, 1) else None

    @property
    def prompt_length(self) -> int:
        """How many tokens the longest prompt has."""
        return self.whole(f"{ROLLOUT}.prompt_length", self.whole("data.max_prompt_length"))

    @property
    def response_length(self) -> int:
        """How many tokens the longest response has."""
        return self.whole(f"{ROLLOUT}.response_length", self.whole("data.max_response_length"))

    @property
    def sequence_length(self) -> int:
        """How many tokens the longest prompt and response have together."""
        return self.prompt_length + self.response_length

    @property
    def micro_batch_tokens(self) -> int | None:
        """The most tokens that a card has at once in an update; None when no micro-batch is set."""
        if self.dynamic_batch:
            return self.whole(f"{ACTOR}.ppo_max_token_len_per_gpu")
        if self.micro_batch is None:
            return None
        return math.ceil(self.micro_batch * self.sequence_length / self.context_parallel)

    # The trainer.

    @property
    def trainer_mode(self) -> str:
        """The mode of verl's V1 trainer: sync, colocate_async or separate_async."""
        return str(self.get("trainer.v1.trainer_mode", "sync"))

    @property
    def sync_step(self) -> int:
        """How many updates an asynchronous trainer makes between two weight syncs; 1 for the synchronous one."""
        name = f"trainer.v1.{self.trainer_mode}.parameter_sync_step"
        return self.whole(name) if name in NUMBERS else 1

    @property
    def updates_per_rollout(self) -> int:
        """How many optimiser steps are made on the samples of one rollout (of ``train_batch_size`` prompts)."""
        return self.sync_step * math.ceil(self.prompts / self.sync_step / self.mini_batch) * self.epochs

    @property
    def bypass(self) -> bool:
        """Whether the rollout engine's log-probabilities are taken for pi_old."""
        return bool(self.get(f"{CORRECTION}.bypass_mode", False))

    @property
    def needs_reference(self) -> bool:
        """Whether the run has a reference model (verl's ``need_reference_policy``)."""
        return bool(self.get("algorithm.use_kl_in_reward", False) or self.get(f"{ACTOR}.use_kl_loss", False))

    # The rollout.

    @property
    def standalone_rollout(self) -> bool:
        """Whether the rollout engine has cards of its own."""
        return self.trainer_mode == "separate_async"

    @property
    def hybrid_rollout(self) -> bool:
        """Whether a rollout engine shares the trainer's cards."""
        return not self.standalone_rollout or bool(self.get("actor_rollout_ref.hybrid_engine", True))

    @property
    def replica_size(self) -> int:
        """How many cards one replica of the rollout engine has."""
        stages = self.whole(f"{ROLLOUT}.pipeline_model_parallel_size")
        return self.rollout_tensor_parallel * self.rollout_data_parallel * stages

    @property
    def rollout_gpus_per_node(self) -> int:
        """How many cards a machine of the rollout engine has."""
        return self.whole(f"{ROLLOUT}.n_gpus_per_node") or self.gpus_per_node

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

    @property
    def method(self) -> str | None:
        """The method that the run goes by."""
        return method_of(self.composed)

    @property
    def loss_mode(self) -> str:
        """The name of the policy loss."""
        return str(self.get(LOSS_MODE, "vanilla"))

    @property
    def lora_rank(self) -> int:
        """The rank of the adapters that the training engine in use trains; 0 without adapters."""
        return self.whole(f"{MODEL}.lora.rank" if self.is_megatron else f"{MODEL}.lora_rank")

    @cached_property
    def architecture(self) -> Architecture | None:
        """The model's architecture; None when it is not known here."""
        return read_architecture(self.get("check.architecture"), self.get(f"{MODEL}.path"))

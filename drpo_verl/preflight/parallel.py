"""Rules about how the model is split: over the cards, and within its own sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from drpo_verl.check.registry import rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import ACTOR, MODEL, ROLLOUT, Run, is_whole

CPUS_A_CARD = 3
"""verl's resource pool reserves so many in Ray for each worker."""
CPUS_BESIDE = 8
"""For the trainer's own process, agent loops and rewards."""
"""What verl's resource pool reserves in Ray for each worker (``ResourcePoolManager.max_colocate_count``)."""


@rule
def trainer_parallel(run: Run) -> Iterable[Finding]:
    """The training engine's sizes (Megatron TP, PP, CP, EP; Ulysses; `fsdp_size`) divide the trainer's cards."""
    if run.is_megatron:
        model = run.tensor_parallel * run.pipeline_parallel * run.context_parallel
        if run.world % model:
            yield run.error(
                f"{run.engine}.tensor_model_parallel_size",
                f"x pipeline {run.pipeline_parallel} x context {run.context_parallel} = {model} does not divide the "
                f"{run.world} cards.",
                "Choose sizes whose product divides them.",
            )
        experts = run.expert_tensor_parallel * run.expert_parallel * run.pipeline_parallel
        if run.expert_parallel > 1 and run.world % experts:
            yield run.error(
                f"{run.engine}.expert_model_parallel_size",
                f"x expert tensor {run.expert_tensor_parallel} x pipeline {run.pipeline_parallel} = {experts} does not "
                f"divide the {run.world} cards.",
                "Choose sizes whose product divides them.",
            )
        return
    if run.world % run.context_parallel:
        yield run.error(_ulysses(run), f"does not divide the {run.world} cards.", "Set it to a divisor of them.")
    if run.context_parallel > 1 and not run.get(f"{MODEL}.use_remove_padding", True):
        yield run.error(
            f"{MODEL}.use_remove_padding",
            f"but sequence parallelism ({_ulysses(run)}={run.context_parallel}) needs it.",
            "Set it to true.",
        )
    size = run.get(f"{run.engine}.fsdp_size", -1)
    if is_whole(size) and 0 <= size < run.world and (size == 0 or run.world % size):
        yield run.error(
            f"{run.engine}.fsdp_size",
            f"does not divide the {run.world} cards.",
            "Set it to -1 to shard over all of them, or to a divisor.",
        )


def _ulysses(run: Run) -> str:
    actors = f"{ACTOR}.ulysses_sequence_parallel_size"
    return actors if run.whole(actors, 1) > 1 else f"{run.engine}.ulysses_sequence_parallel_size"


@rule
def rollout_parallel(run: Run) -> Iterable[Finding]:
    """The rollout engine's sizes (TP, DP, PP, EP) divide its cards and a node's, and are ones that verl implements."""
    name = f"{ROLLOUT}.tensor_model_parallel_size"
    if run.whole(f"{ROLLOUT}.pipeline_model_parallel_size", 1) > 1:
        yield run.error(
            f"{ROLLOUT}.pipeline_model_parallel_size", "is not implemented by verl's rollout engines.", "Set it to 1."
        )
    pools = {"trainer's": run.world} if run.hybrid_rollout else {}
    if run.standalone_rollout:
        pools["rollout's own"] = run.rollout_world
    for whose, cards in pools.items():
        if cards % run.replica_size:
            yield run.error(
                name,
                f"x data parallel {run.rollout_data_parallel} makes replicas of {run.replica_size} cards, which do not "
                f"divide the {whose} {cards}.",
                f"Set it to a divisor of {cards}." if cards > 1 else "Set both to 1.",
            )
            return
    node = run.whole(f"{ROLLOUT}.n_gpus_per_node", run.gpus_per_node)
    if run.replica_size > node and run.replica_size % node:
        yield run.error(
            name,
            f"makes replicas of {run.replica_size} cards, which are no whole nodes of {node}.",
            "Choose a product of tensor and data parallel sizes that is.",
        )
    elif run.rollout_tensor_parallel > node:
        yield run.warning(
            name,
            f"is more than the {node} cards of a node: every layer of every token waits for the network.",
            f"Set it to at most {node}.",
        )
    experts = run.whole(f"{ROLLOUT}.expert_parallel_size", 1)
    product = run.rollout_tensor_parallel * run.rollout_data_parallel
    if experts > 1 and experts != product:
        yield run.error(
            f"{ROLLOUT}.expert_parallel_size",
            f"is neither 1 nor tensor x data parallel size = {product}, as verl demands.",
            f"Set it to {product}.",
        )


@rule
def heads(run: Run) -> Iterable[Finding]:
    """Attention and key-value heads divide over the tensor- and sequence-parallel sizes of both engines."""
    model = run.architecture
    if model is None:
        return
    name, size = f"{ROLLOUT}.tensor_model_parallel_size", run.rollout_tensor_parallel
    if model.heads % size or not _either_divides(model.kv_heads, size):
        yield run.error(
            name,
            f"does not split {model.heads} attention heads and {model.kv_heads} key-value heads.",
            f"Set it to {_divisor_of_heads(model.heads, model.kv_heads, run.rollout_world)}.",
        )
    size = run.context_parallel
    if run.is_fsdp and size > 1 and (model.heads % size or not _either_divides(model.kv_heads, size)):
        yield run.error(
            _ulysses(run),
            f"does not split {model.heads} attention heads and {model.kv_heads} key-value heads.",
            f"Set it to {_divisor_of_heads(model.heads, model.kv_heads, run.world)}.",
        )
    size = run.tensor_parallel
    if size > 1 and (model.heads % size or model.kv_heads % size):
        yield run.error(
            f"{run.engine}.tensor_model_parallel_size",
            f"does not divide {model.heads} attention heads and {model.kv_heads} key-value heads.",
            f"Set it to a divisor of {math.gcd(model.heads, model.kv_heads)}.",
        )


def _either_divides(one: int, other: int) -> bool:
    return one % other == 0 or other % one == 0


def _divisor_of_heads(heads: int, kv_heads: int, cards: int) -> int:
    divisors = (size for size in range(1, heads + 1) if heads % size == 0 and cards % size == 0)
    return max(size for size in divisors if _either_divides(kv_heads, size))


@rule
def experts(run: Run) -> Iterable[Finding]:
    """Expert parallelism is asked for only of a model with experts, whose number it divides."""
    name, size = f"{run.engine}.expert_model_parallel_size", run.expert_parallel
    if run.architecture is None or size == 1:
        return
    if not run.architecture.experts:
        yield run.error(name, "but the model has no experts.", "Set it to 1.")
    elif run.architecture.experts % size:
        yield run.error(
            name, f"does not divide the {run.architecture.experts} experts.", "Set it to a divisor of them."
        )


@rule
def layers(run: Run) -> Iterable[Finding]:
    """The pipeline's stages, virtual ones included, divide the layers unless their number is set for the ends."""
    if run.architecture is None or not run.is_megatron:
        return
    override = run.get(f"{run.engine}.override_transformer_config", {})
    uneven = (
        "num_layers_in_first_pipeline_stage",
        "num_layers_in_last_pipeline_stage",
        "pipeline_model_parallel_layout",
        "account_for_embedding_in_pipeline_split",
        "account_for_loss_in_pipeline_split",
    )
    if any(override.get(each) for each in uneven):
        return
    stages = run.pipeline_parallel * run.whole(f"{run.engine}.virtual_pipeline_model_parallel_size", 1)
    if run.architecture.layers % stages:
        yield run.error(
            f"{run.engine}.pipeline_model_parallel_size",
            f"makes {stages} stages, which do not divide the {run.architecture.layers} layers.",
            f"Set it to a divisor, or set override_transformer_config.{uneven[0]}.",
        )


@rule
def separate_rollout(run: Run) -> Iterable[Finding]:
    """The separate asynchronous trainer has cards for its rollout, and a checkpoint engine that reaches them."""
    if not run.standalone_rollout:
        return
    for name in (f"{ROLLOUT}.nnodes", f"{ROLLOUT}.n_gpus_per_node"):
        value = run.get(name, 0)
        if not is_whole(value) or value < 1:
            yield run.error(name, "but trainer_mode=separate_async gives the rollout its own cards.", "Set it.")
    name = f"{ROLLOUT}.checkpoint_engine.backend"
    if run.get(name, "naive") == "naive":
        yield run.error(
            name,
            "copies weights within one process, and the rollout of trainer_mode=separate_async has its own.",
            "Set it to nccl (or nixl, mooncake).",
        )


@rule
def cpus(run: Run) -> Iterable[Finding]:
    """A node has the CPUs that verl reserves in Ray for its workers; without them a run waits for ever."""
    given = "ray_kwargs.ray_init.num_cpus"
    name = given if is_whole(run.get(given)) else "check.cpus_per_node"
    needed = CPUS_A_CARD * run.gpus_per_node
    if run.number(name, math.inf) < needed:
        yield run.error(
            name,
            f"is less than the {needed} that verl reserves for the {run.gpus_per_node} workers of a node "
            f"({CPUS_A_CARD} each): Ray would wait for ever.",
            f"Set {given} to {needed + CPUS_BESIDE}: Ray only counts them, so more than there are is fine.",
        )

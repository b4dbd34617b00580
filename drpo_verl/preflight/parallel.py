"""Rules about how the model is split: over the cards, and within its own sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_number, is_whole
from drpo_verl.configuration.run_config import DRIVER_CPUS, WORKER_CPUS, RunConfig
from drpo_verl.configuration.sections import ACTOR, MODEL, ROLLOUT

_MEGATRON = f"{ACTOR}.megatron"
_TENSOR, _PIPELINE, _CONTEXT, _EXPERT, _EXPERT_TENSOR = (
    f"{_MEGATRON}.{name}_parallel_size"
    for name in ("tensor_model", "pipeline_model", "context", "expert_model", "expert_tensor")
)
_UNEVEN = (
    "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage", "pipeline_model_parallel_layout",
    "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split",
)  # fmt: skip
"""Megatron's settings for stages of different sizes."""
_ROLLOUT_TENSOR, _ROLLOUT_DATA = f"{ROLLOUT}.tensor_model_parallel_size", f"{ROLLOUT}.data_parallel_size"


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest size up to a limit that fits; 0 when none does."""
    return next((size for size in range(limit, 0, -1) if fits(size)), 0)


def _splits(size: int, heads: int, kv_heads: int) -> bool:
    """Whether heads divide over so many cards, key-value heads being copied where they are fewer."""
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


def _splits_heads(run: RunConfig, size: int) -> bool:
    model = run.architecture
    return model is None or _splits(size, model.heads, model.kv_heads)


_CHECKPOINT_ENGINES = ("nccl", "nixl", "mooncake", "kimi_ckpt_engine", "delta_sharded")
"""What verl registers beside naive; its nccl stands for hccl on an NPU."""


@rule
def trainer_parallel(run: RunConfig) -> Findings:
    """The training engine's sizes (Megatron TP, PP, CP, EP; Ulysses; `fsdp_size`) divide the trainer's cards."""
    if run.is_megatron:
        yield from _megatron_parallel(run)
        return
    ulysses = run.ulysses_setting
    if run.world % run.context_parallel:
        size = _largest(run.context_parallel, lambda size: run.world % size == 0 and _splits_heads(run, size))
        yield run.error(ulysses, f"does not divide the {run.world} cards.", f"{ulysses}={size}")
    if run.context_parallel > 1 and not run.get(f"{MODEL}.use_remove_padding", True):
        name = f"{MODEL}.use_remove_padding"
        message = f"but sequence parallelism ({ulysses}={run.context_parallel}) needs it."
        yield run.error(name, message, f"{name}=True")
    name = f"{run.engine}.fsdp_size"
    size = run.get(name, -1)
    if is_whole(size) and 0 <= size < run.world and (size == 0 or run.world % size):
        advice = "That shards over all of them; a divisor will do, too."
        yield run.error(name, f"does not divide the {run.world} cards.", f"{name}=-1", advice=advice)


def _megatron_parallel(run: RunConfig) -> Findings:
    others = run.pipeline_parallel * run.context_parallel
    product = run.tensor_parallel * others
    if run.world % product:
        size = _largest(run.tensor_parallel, lambda size: run.world % (size * others) == 0 and _splits_heads(run, size))
        message = f"x pipeline {run.pipeline_parallel} x context {run.context_parallel} = {product} does not divide "
        override = f"{_TENSOR}={size}" if size else f"{_TENSOR}=1 {_PIPELINE}=1 {_CONTEXT}=1"
        yield run.error(_TENSOR, f"{message}the {run.world} cards.", override)
    others = run.expert_tensor_parallel * run.pipeline_parallel
    product = run.expert_parallel * others
    if run.expert_parallel > 1 and run.world % product:
        count = run.architecture.experts if run.architecture else 0
        size = _largest(run.expert_parallel, lambda size: run.world % (size * others) == 0 and count % size == 0)
        message = f"x expert tensor {run.expert_tensor_parallel} x pipeline {run.pipeline_parallel} = {product} does "
        yield run.error(_EXPERT, f"{message}not divide the {run.world} cards.", f"{_EXPERT}={size or 1}")


@rule
def rollout_parallel(run: RunConfig) -> Findings:
    """The rollout engine's sizes (TP, DP, PP, EP) divide its cards and a node's, and are ones that verl implements."""
    stages = f"{ROLLOUT}.pipeline_model_parallel_size"
    if run.whole(stages) > 1:
        yield run.error(stages, "is not implemented by verl's rollout engines.", f"{stages}=1")
    pools = {"trainer's": run.world} if run.hybrid_rollout else {}
    if run.standalone_rollout:
        pools["rollout's own"] = run.rollout_world
    node, tensor = run.rollout_gpus_per_node, run.rollout_tensor_parallel
    for whose, cards in pools.items():
        if cards % run.replica_size:
            message = f"x data parallel {run.rollout_data_parallel} makes replicas of {run.replica_size} cards, which "
            message += f"do not divide the {whose} {cards}."
            yield run.error(_ROLLOUT_TENSOR, message, _smaller_replica(run, tensor))
            return
    if run.replica_size > node and run.replica_size % node:
        message = f"makes replicas of {run.replica_size} cards, which are no whole nodes of {node}."
        yield run.error(_ROLLOUT_TENSOR, message, _smaller_replica(run, node))
    elif tensor > node:
        message = f"is more than the {node} cards of a node: every layer of every token waits for the network."
        yield run.warning(_ROLLOUT_TENSOR, message, _smaller_replica(run, node))
    product = tensor * run.rollout_data_parallel
    if run.rollout_expert_parallel > 1 and run.rollout_expert_parallel != product:
        name = f"{ROLLOUT}.expert_parallel_size"
        message = f"is neither 1 nor tensor x data parallel size = {product}, as verl demands."
        yield run.error(name, message, f"{name}={product}")


def fits_rollout(run: RunConfig, tensor: int) -> bool:
    """Whether the rollout could have that tensor parallel size: its cards divide by replicas, and so do the heads."""
    pools = [run.world] * run.hybrid_rollout + [run.rollout_world] * run.standalone_rollout
    replica, node = tensor * run.rollout_data_parallel, run.rollout_gpus_per_node
    whole_nodes = replica <= node or replica % node == 0
    return whole_nodes and all(cards % replica == 0 for cards in pools) and _splits_heads(run, tensor)


def _smaller_replica(run: RunConfig, limit: int) -> str:
    """The override with the largest tensor parallel size of the rollout that is no more than a limit and works."""
    size = _largest(limit, lambda size: fits_rollout(run, size))
    return f"{_ROLLOUT_TENSOR}={size}" if size else f"{_ROLLOUT_TENSOR}=1 {_ROLLOUT_DATA}=1"


@rule
def heads(run: RunConfig) -> Findings:
    """Attention and key-value heads divide over the tensor- and sequence-parallel sizes of both engines."""
    model = run.architecture
    if model is None:
        return
    counts = f"{model.heads} attention heads and {model.kv_heads} key-value heads"
    size = run.rollout_tensor_parallel
    if not _splits_heads(run, size):
        yield run.error(_ROLLOUT_TENSOR, f"does not split {counts}.", _smaller_replica(run, size))
    size = run.context_parallel
    if run.is_fsdp and not _splits_heads(run, size):
        fitting = _largest(size, lambda size: run.world % size == 0 and _splits_heads(run, size))
        yield run.error(run.ulysses_setting, f"does not split {counts}.", f"{run.ulysses_setting}={fitting}")
    size = run.tensor_parallel
    if model.heads % size or model.kv_heads % size:
        common = math.gcd(model.heads, model.kv_heads)
        others = run.pipeline_parallel * run.context_parallel
        fitting = _largest(size, lambda size: common % size == 0 and run.world % (size * others) == 0)
        advice = f"It has to be a divisor of {common}."
        yield run.error(_TENSOR, f"does not divide {counts}.", f"{_TENSOR}={fitting or 1}", advice=advice)


@rule
def experts(run: RunConfig) -> Findings:
    """Expert parallelism is asked for only of a model with experts, whose number it divides."""
    size = run.expert_parallel
    if run.architecture is None or size == 1:
        return
    count = run.architecture.experts
    if not count:
        yield run.error(_EXPERT, "but the model has no experts.", f"{_EXPERT}=1")
    elif count % size:
        others = run.expert_tensor_parallel * run.pipeline_parallel
        fitting = _largest(size, lambda size: count % size == 0 and run.world % (size * others) == 0)
        yield run.error(_EXPERT, f"does not divide the {count} experts.", f"{_EXPERT}={fitting or 1}")


@rule
def layers(run: RunConfig) -> Findings:
    """The pipeline's stages, virtual ones included, divide the layers unless their number is set for the ends."""
    if run.architecture is None or not run.is_megatron:
        return
    if any(run.get(f"{_MEGATRON}.override_transformer_config.{name}") for name in _UNEVEN):
        return
    virtual, count = f"{_MEGATRON}.virtual_pipeline_model_parallel_size", run.architecture.layers
    stages = run.pipeline_parallel * run.whole(virtual)
    if count % stages:
        fitting = _largest(run.pipeline_parallel, lambda size: count % size == 0 and run.world % size == 0)
        override = f"{_PIPELINE}={fitting}" + (f" {virtual}=null" if run.whole(virtual) > 1 else "")
        advice = f"Uneven stages are set with override_transformer_config.{_UNEVEN[0]}."
        message = f"makes {stages} stages, which do not divide the {count} layers."
        yield run.error(_PIPELINE, message, override, advice=advice)


@rule
def separate_rollout(run: RunConfig) -> Findings:
    """The separate asynchronous trainer has cards for its rollout, and a checkpoint engine that reaches them."""
    if not run.standalone_rollout:
        return
    for name, example in ((f"{ROLLOUT}.nnodes", 1), (f"{ROLLOUT}.n_gpus_per_node", run.gpus_per_node)):
        if run.whole(name) < 1:
            message = "but trainer_mode=separate_async gives the rollout its own cards."
            yield run.error(name, message, f"{name}={example}", advice="Or to as many as there are.")
    name = f"{ROLLOUT}.checkpoint_engine.backend"
    if run.get(name, "naive") == "naive":
        message = "copies weights within one process, and the rollout of trainer_mode=separate_async has its own."
        yield run.error(name, message, f"{name}=nccl", advice="verl has nixl and mooncake, too.")
    elif run.get(name) not in _CHECKPOINT_ENGINES and not run.get(f"{ROLLOUT}.checkpoint_engine.custom_backend_module"):
        message = "is not a checkpoint engine of verl's, and no custom_backend_module brings one."
        yield run.error(name, message, f"{name}=nccl", advice=f"verl has {', '.join(_CHECKPOINT_ENGINES)}.")


@rule
def cpus(run: RunConfig) -> Findings:
    """A node has the CPUs that verl reserves in Ray for its workers; without them a run waits for ever."""
    counted = "ray_kwargs.ray_init.num_cpus"
    name = counted if is_whole(run.get(counted)) else "check.cpus_per_node"
    needed, there = WORKER_CPUS * run.gpus_per_node, run.get(name)
    if is_number(there) and there < needed:
        message = f"is less than the {needed} that verl reserves for the {run.gpus_per_node} workers of a node "
        message += f"({WORKER_CPUS} each): Ray would wait for ever."
        advice = "Ray only counts them, so more than there are is fine."
        yield run.error(name, message, f"{counted}={needed + DRIVER_CPUS}", advice=advice)

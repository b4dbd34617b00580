"""What a card has to hold, estimated from the model's sizes: once while sampling, once while updating.

An estimate: allocator fragmentation, kernels' workspaces and uneven routing of experts are not in it. The formulas are
in docs/check.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from drpo_verl.configuration.architecture import Architecture
from drpo_verl.configuration.numbers import is_number, is_whole
from drpo_verl.configuration.precision import compute_dtype, fp8_training, short_dtype, trainer_numbers
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import MODEL, POLICY_LOSS, ROLLOUT

GIB = 1024**3
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_CONTEXT = 2 * GIB
"""CUDA's context, NCCL's buffers and the libraries of one process, in bytes."""
_GRAPHS = 1 * GIB
"""vLLM's CUDA graphs, in bytes."""
_TOP_K_ENTRY = 64
"""Bytes of an id and its log-probabilities under both policies, and of what the divergence makes of them on the way."""
_TOP_K_CHUNK = 64 * 1024**2
"""Bytes of the chunk of the logits over which the normaliser is computed."""
CARD = "check.gpu_memory_gib"
"""The setting with the memory of one card."""
UTILISATION = f"{ROLLOUT}.gpu_memory_utilization"
"""The setting with the share of a card's memory that the rollout engine takes."""


@dataclass(frozen=True)
class Part:
    """What one thing takes of a card's memory.

    Args:
        name: what it is.
        size: in bytes.
        how: where the number comes from.
    """

    name: str
    size: float
    how: str


@dataclass(frozen=True)
class Memory:
    """What a card holds.

    Args:
        update: while the trainer updates.
        rollout: while the rollout engine samples; for an engine with cards of its own, on those.
        kv_tokens: how many tokens of KV cache a replica of the rollout engine has room for; None when the card's size
            is not known.
        hybrid: on the trainer's cards while they sample too, beside an engine with cards of its own; empty elsewhere.
    """

    update: list[Part]
    rollout: list[Part]
    kv_tokens: float | None
    hybrid: list[Part]

    @staticmethod
    def total(parts: list[Part]) -> float:
        """Bytes of all parts."""
        return sum(part.size for part in parts)


def card_gib(run: RunConfig) -> float | None:
    """The memory of one card in GiB; None when it is not known."""
    size: float | None = run.get(CARD)
    return size if is_number(size) else None


def estimate(run: RunConfig) -> Memory | None:
    """What one card holds; None for a CPU, or when the model's sizes or the micro-batch are not known."""
    if run.on_cpu or run.architecture is None or run.micro_batch_tokens is None:
        return None
    states = _megatron_states(run, run.architecture) if run.is_megatron else _fsdp_states(run, run.architecture)
    update = [*states, *_activations(run, run.architecture), Part("CUDA, NCCL", _CONTEXT, "a constant")]
    if run.hybrid_rollout and not run.get(f"{ROLLOUT}.free_cache_engine", True):
        held = run.number(UTILISATION) * (card_gib(run) or 0) * GIB
        update.append(Part("rollout engine", held, "free_cache_engine=False: it stays"))
    rollout, kv_tokens = _rollout(run, run.architecture)
    shared = [*rollout, *_resident(run, states)] if run.hybrid_rollout else []
    if run.standalone_rollout:
        return Memory(update, rollout, kv_tokens, hybrid=shared)
    return Memory(update, shared, kv_tokens, hybrid=[])


def _trained(run: RunConfig, model: Architecture) -> float:
    # Of LoRA on all linear layers: rank x (inputs + outputs) of each, of experts as far as they are linear layers.
    if not run.lora_rank:
        return model.parameters.total
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = 2 * (model.hidden + query) + 2 * (model.hidden + key)
    mlp = 3 * (model.hidden + model.intermediate) if not model.experts else 0
    return run.lora_rank * model.layers * (attention + mlp)


def _fsdp_states(run: RunConfig, model: Architecture) -> list[Part]:
    size = run.get(f"{run.engine}.fsdp_size", -1)
    shards = run.world if not is_number(size) or size <= 0 or size >= run.world else size
    if run.get(f"{run.engine}.offload_policy", False):
        shards = math.inf  # weights, gradients and optimiser states are in host memory
    dtype, compute = short_dtype(run.get(f"{run.engine}.model_dtype"), "fp32"), compute_dtype(run)
    total, trained = model.parameters.total, _trained(run, model)
    ends = model.parameters.embedding + model.parameters.head
    layer = (total - ends) / max(1, model.layers)
    gathered, what = ends + 2 * layer, f"embedding, head and two layers in {compute}"
    if not run.get(f"{run.engine}.reshard_after_forward", True):
        gathered, what = total, f"all layers in {compute} (reshard_after_forward=False)"
    reduced = Part("gradients of a layer", 0 if run.lora_rank else 4 * (ends + layer), "fp32, until reduced")
    if run.get(f"{run.engine}.use_no_sync_for_gradient_accumulation", False):
        reduced = Part("unsharded gradients", 4 * trained, "use_no_sync_for_gradient_accumulation=True")
    here = f"{trained / 1e9:.2f} G x {dtype} / {shards}"
    return [
        Part("weights", total * _BYTES[dtype] / shards, f"{total / 1e9:.2f} G x {dtype} / {shards} shards"),
        Part("gradients", trained * _BYTES[dtype] / shards, here),
        Part("optimiser states", 2 * trained * _BYTES[dtype] / shards, f"2 x {here}"),
        Part("gathered weights", gathered * _BYTES[compute], what),
        reduced,
    ]


def _megatron_states(run: RunConfig, model: Architecture) -> list[Part]:
    parameters = model.parameters
    tensor, stages = run.tensor_parallel, run.pipeline_parallel
    # The first or the last stage is the largest; with one stage it has both ends.
    ends = parameters.embedding + parameters.head if stages == 1 else max(parameters.embedding, parameters.head)
    dense = (parameters.other / stages + ends) / tensor
    experts = parameters.experts / (run.expert_tensor_parallel * run.expert_parallel * stages)
    replicas = run.data_parallel * run.context_parallel
    expert_replicas = max(1, run.world // (run.expert_tensor_parallel * run.expert_parallel * stages))
    trained = 1.0 if not run.lora_rank else _trained(run, model) / parameters.total
    if not run.get(f"{run.engine}.use_distributed_optimizer", True):
        replicas = expert_replicas = 1
    states = trained * (dense / replicas + experts / expert_replicas)
    here, ranks = f"{(dense + experts) / 1e9:.2f} G", f"{replicas} ranks ({expert_replicas} for experts)"
    parts = [
        Part("weights", 2 * (dense + experts), f"{here} x bf16 (TP {tensor}, PP {stages}, EP {run.expert_parallel})"),
        Part("gradients", 4 * trained * (dense + experts), f"{here} x fp32"),
        Part("optimiser states", 12 * states, f"fp32 weights and two moments, over {ranks}"),
    ]
    if fp8_training(run):
        parts.append(Part("FP8 weights", dense + experts, "a second copy, beside the bf16 one"))
    return parts


def _activations(run: RunConfig, model: Architecture) -> list[Part]:
    tokens, size = run.micro_batch_tokens or 0, _BYTES[compute_dtype(run)]
    split = run.tensor_parallel
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    # Of one layer: norms (with their fp32 copies) and residuals; q, k, v, their rotated copies and the output of flash
    # attention; gate, up, their activation and product.
    width = 8 * model.hidden + 3 * query + 4 * key + 4 * model.active_intermediate
    layer = tokens * size * width / split
    checkpointed = bool(run.get(f"{MODEL}.enable_gradient_checkpointing", True)) and not run.is_megatron
    if run.is_megatron:
        checkpointed = run.get(f"{run.engine}.override_transformer_config.recompute_granularity") == "full"
    # 1F1B: the first stage has as many micro-batches in flight as there are stages, of as many fewer layers.
    held, what = model.layers * layer, f"{model.layers} layers, {tokens} tokens, nothing recomputed"
    if checkpointed:
        layers_held = 2 if run.get(f"{MODEL}.enable_activation_offload", False) else model.layers
        held = layer + layers_held * tokens * size * model.hidden / split
        what = f"{model.layers} layers' inputs for {tokens} tokens, and one layer's all"
    parts = [Part("activations", held, what)]
    if run.get(f"{MODEL}.use_fused_kernels", False):
        return parts
    each, what = (6, "bf16, and fp32 probabilities") if run.is_megatron else (4, "bf16 with their gradient")
    if compute_dtype(run) != "fp32" and trainer_numbers(run).head == "fp32":
        each, what = 8, "fp32 with their gradient"
        weight = model.vocabulary * model.hidden
        parts.append(Part("LM head", 8 * weight, f"{weight / 1e9:.2f} B parameters, a copy in fp32 with its gradient"))
    parts.append(Part("logits", tokens * model.vocabulary * each / split, f"{tokens} x {model.vocabulary}, {what}"))
    top_k = run.get(f"{POLICY_LOSS}.top_k")
    if is_whole(top_k, 1):
        size = tokens * (top_k + 1) * _TOP_K_ENTRY + _TOP_K_CHUNK
        parts.append(Part("Top-K", size, f"{tokens} x {top_k + 1} entries, and a chunk of the logits in fp32"))
    return parts


def _resident(run: RunConfig, states: list[Part]) -> list[Part]:
    parts = [Part("trainer: CUDA, NCCL", _CONTEXT, "a constant")]
    if not run.get(f"{run.engine}.param_offload", False):
        parts.append(Part("trainer: weights", states[0].size, "param_offload=False"))
        if run.is_megatron:
            parts.append(Part("trainer: gradients", states[1].size, "param_offload=False: the buffer stays"))
    if not run.get(f"{run.engine}.optimizer_offload", False):
        parts.append(Part("trainer: optimiser states", states[2].size, "optimizer_offload=False"))
    return parts


def _rollout(run: RunConfig, model: Architecture) -> tuple[list[Part], float | None]:
    parameters, tensor = model.parameters, run.rollout_tensor_parallel
    dtype = short_dtype(run.get(f"{ROLLOUT}.dtype"))
    linear = 1 if run.get(f"{ROLLOUT}.quantization") == "fp8" else _BYTES[dtype]
    expert_split = tensor * run.rollout_data_parallel if run.rollout_expert_parallel > 1 else tensor
    dense = (parameters.embedding + parameters.head) * _BYTES[dtype] + parameters.other * linear
    weights = dense / tensor + parameters.experts * linear / expert_split
    tokens = run.whole(f"{ROLLOUT}.max_num_batched_tokens")
    width = max(model.active_intermediate, model.heads * model.head_dim)
    step = tokens * _BYTES[dtype] * (4 * model.hidden + 3 * width / tensor)
    sampled = run.whole(f"{ROLLOUT}.max_num_seqs") * model.vocabulary * 4 * 2
    graphs = 0 if run.get(f"{ROLLOUT}.enforce_eager", False) else _GRAPHS
    parts = [
        Part("weights", weights, f"{'fp8' if linear == 1 else dtype}, TP {tensor}"),
        Part("a step", step + sampled, f"{tokens} batched tokens, and logits of max_num_seqs sequences"),
        Part("CUDA, graphs", _CONTEXT + graphs, "constants"),
    ]
    card, share = card_gib(run), run.number(UTILISATION)
    if card is None:
        return parts, None
    room = share * card * GIB - Memory.total(parts)
    parts.append(Part("KV cache", max(0.0, room), f"what is left of gpu_memory_utilization={share}"))
    return parts, max(0.0, room) / kv_bytes(run, model)


def kv_bytes(run: RunConfig, model: Architecture) -> float:
    """Bytes of KV cache that a token takes on one card of the rollout engine."""
    kind = str(run.get(f"{ROLLOUT}.engine_kwargs.vllm.kv_cache_dtype", "auto"))
    size = 1 if kind.startswith("fp8") else _BYTES[short_dtype(run.get(f"{ROLLOUT}.dtype"))]
    heads = math.ceil(model.kv_heads / run.rollout_tensor_parallel)  # replicated where there are fewer than cards
    return 2 * model.attention_layers * heads * model.head_dim * size

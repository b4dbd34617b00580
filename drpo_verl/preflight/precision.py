"""Rules about precision: dtypes on both sides, FP8 in the rollout and end to end, adapters."""

from __future__ import annotations

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.precision import compute_dtype, fp8_training, is_dtype, short_dtype
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, ENVIRONMENT, MODEL, ROLLOUT

_BLOCK = 128
"""verl quantises a rollout's weights in blocks of 128 x 128 (``vllm_async_server.py``: ``weight_block_size``)."""
_FINEST_BLOCK = 32
_FP8_SCALES = "NVTE_FP8_BLOCK_SCALING_FP32_SCALES"
_LARGEST_LORA_RANK = 512
_MERGE = f"{MODEL}.lora.merge"


@rule
def precision(run: RunConfig) -> Findings:
    """Both engines compute in known precisions of the same range, and the optimiser's weights are fp32."""
    name = f"{ROLLOUT}.dtype"
    value = run.get(name, "bfloat16")
    if not is_dtype(value) and str(value).lower() != "auto":
        yield run.error(name, "is no dtype of vLLM.", f"{name}=bfloat16", advice="vLLM has float16 and float32, too.")
        return
    rollout, trainer = short_dtype(value), compute_dtype(run)
    if rollout != trainer:
        message = f"samples in {rollout}, and the trainer computes in {trainer}: a training-inference mismatch from "
        if "fp32" in (rollout, trainer):
            yield run.note(name, message + "the first step on, if that is what is studied.")
        else:
            long_name = {"bf16": "bfloat16", "fp16": "float16"}[trainer]
            yield run.warning(name, message + "the first step on.", f"{name}={long_name}")
    name = f"{run.engine}.model_dtype"
    if run.is_fsdp and short_dtype(run.get(name), "fp32") != "fp32" and not run.lora_rank:
        message = "is what the optimiser updates: a step of 1e-6 is lost in its rounding."
        yield run.warning(name, message, f"{name}=fp32", advice="The forward pass is in bf16 all the same.")


@rule
def fp8(run: RunConfig) -> Findings:
    """FP8: in blocks that the split model has; in training with Megatron only, on both sides and with one recipe."""
    from torch.backends.cpu import get_cpu_capability

    name = f"{ROLLOUT}.quantization"
    rollout = run.get(name)
    if rollout not in (None, "fp8", "torchao", "ascend"):
        message = "is none of fp8, torchao and ascend, which are what verl has."
        yield run.error(name, message, f"{name}=null", f"{name}=fp8")
    cache = f"{ROLLOUT}.engine_kwargs.vllm.kv_cache_dtype"
    if rollout == "fp8" and run.on_cpu:
        advice = "On a CPU, a KV cache in FP8 (precision cpu_fp8_kv) makes a mismatch of that kind."
        yield run.error(name, "needs AMX on a CPU, and verl's loader CUDA.", f"{name}=null", advice=advice)
    is_here = run.get("ray_kwargs.ray_init.address") == "local"
    if run.on_cpu and is_here and str(run.get(cache)).startswith("fp8") and "AVX512" not in get_cpu_capability():
        message = "needs AVX-512 or AMX with vLLM on a CPU, and this one has neither."
        yield run.error(cache, message, f"{cache}=auto")
    if rollout == "fp8":
        yield from _fp8_blocks(run)
    if rollout == "fp8" and run.lora_rank and not run.get(_MERGE, False):
        message = "with adapters: verl's loader quantises the weights that it is sent, and of LoRA those are adapters."
        yield run.warning(name, message, f"{_MERGE}=True", f"{name}=null")
    yield from _fp8_training(run) if fp8_training(run) else _fp8_without_megatron(run)


def _fp8_blocks(run: RunConfig) -> Findings:
    model, size = run.architecture, run.rollout_tensor_parallel
    if model is None or (model.experts and run.rollout_expert_parallel > 1):
        return  # not known; or experts, which stay whole
    what, width = ("an expert", model.expert_intermediate) if model.experts else ("an MLP", model.intermediate)
    if width % (size * _BLOCK) == 0:
        return
    # vLLM 0.30 cuts the blocks of experts finer where it can (refine_fp8_moe_block_shape), and refuses all else.
    finer = bool(model.experts) and width % (size * _FINEST_BLOCK) == 0
    sizes = (each for each in range(1, size + 1) if run.rollout_world % each == 0)
    fitting = max(each for each in sizes if width % (each * _BLOCK) == 0 or each == 1)
    name = f"{ROLLOUT}.tensor_model_parallel_size"
    overrides = [f"{name}={fitting}"]
    if model.experts:
        overrides.append(f"{ROLLOUT}.expert_parallel_size={size * run.rollout_data_parallel}")
    message = f"leaves {width / size:g} of the {width} columns of {what} to a card, which FP8's blocks of {_BLOCK} do "
    then = "cuts them finer (0.30), or refuses them (earlier versions)" if finer else "refuses"
    yield run.finding("warning" if finer else "error", name, f"{message}not fit: vLLM {then}.", *overrides)


def _fp8_without_megatron(run: RunConfig) -> Findings:
    # A section that is not the engine's own is refused by verl, so that it has to go as a whole.
    for section, refused in ((f"{ACTOR}.megatron", ""), (run.engine, ".override_transformer_config")):
        name = f"{section}.override_transformer_config.fp8"
        if run.get(name) and not run.is_megatron:
            message = f"is Megatron's, and the engine is {run.strategy}, which trains in no FP8."
            yield run.error(name, message, f"~{section}{refused}", "backend=megatron")


def _fp8_training(run: RunConfig) -> Findings:
    name = f"{run.engine}.override_transformer_config.fp8_recipe"
    optimizer_name = f"{ACTOR}.optim.override_optimizer_config.fp8_recipe"
    recipe, optimizer_recipe = run.get(name), run.get(optimizer_name)
    if recipe != "blockwise":
        both = " ".join(run.override(each, "blockwise") for each in (name, optimizer_name))
        yield run.warning(name, "is not the recipe of the rollout's blocks.", both, advice="verl's scripts have it so.")
    if optimizer_recipe != recipe:
        yield run.error(optimizer_name, f"is not the model's ({recipe}).", run.override(optimizer_name, recipe))
    name = f"{ROLLOUT}.quantization"
    if run.get(name) != "fp8":
        message = "but the trainer computes in FP8: the rollout is the more precise of the two."
        yield run.warning(name, message, f"{name}=fp8", advice="That is FP8 end to end.")
    name = f"{ENVIRONMENT}.{_FP8_SCALES}"
    if str(run.get(name)) != "1":
        message = "but without it the trainer's scales are powers of two, and the rollout's are not."
        yield run.warning(name, message, run.override(name, '"1"'))


@rule
def lora(run: RunConfig) -> Findings:
    """Adapters are set where the engine in use reads them, with a rank that vLLM has, and reach a separate rollout."""
    fsdp_rank, megatron_rank = f"{MODEL}.lora_rank", f"{MODEL}.lora.rank"
    unread, read = (fsdp_rank, megatron_rank) if run.is_megatron else (megatron_rank, fsdp_rank)
    rank = run.whole(unread)
    if rank and not run.whole(read):
        message = f"is not read by {run.strategy}, while the rollout makes room for adapters."
        yield run.error(unread, message, f"{read}={rank}", f"{unread}=0")
    if run.lora_rank > _LARGEST_LORA_RANK:
        message = f"is above {_LARGEST_LORA_RANK}, the largest that vLLM has."
        yield run.error(read, message, f"{read}=32", advice="That is the paper's.")
    if run.lora_rank and run.standalone_rollout and not run.get(_MERGE, False):
        # verl, engine_workers.py: update_weights asks for the parameters as before their first sync.
        message = "but to a rollout on its own cards verl sends the base model without its adapters, for ever."
        yield run.error(_MERGE, message, f"{_MERGE}=True")

"""Rules about precision: dtypes on both sides, fp16's range, the LM head, FP8 and emulated formats, adapters."""

from __future__ import annotations

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.precision import (
    EMULATED,
    EMULATED_FORMATS,
    HF_OVERRIDES,
    KV_CACHE_DTYPE,
    QUANTIZATION,
    ROLLOUT_HEAD,
    TRAINER_HEAD,
    VLLM_QUANTIZATION,
    compute_dtype,
    fp8_training,
    is_dtype,
    is_vllm,
    rollout_differences,
    rollout_numbers,
    short_dtype,
    trainer_numbers,
)
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, ENVIRONMENT, MODEL, ROLLOUT

_BLOCK = 128
"""verl quantises a rollout's weights in blocks of 128 x 128 (``vllm_async_server.py``: ``weight_block_size``)."""
_FINEST_BLOCK = 32
_FP8_SCALES = "NVTE_FP8_BLOCK_SCALING_FP32_SCALES"
_LARGEST_LORA_RANK = 512
_NOT_IN_FP16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
"""Types of models that vLLM refuses in fp16 (0.30, ``config/model.py``: ``_FLOAT16_NOT_SUPPORTED_MODELS``)."""
_SMALLEST_NORMAL = 2.0**-14
_ROUNDED_TO_ZERO = 2.0**-25
"""The largest number that rounds to 0 in fp16, half of its smallest."""
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
    if rollout != trainer and "fp32" not in (rollout, trainer):
        long_name = {"bf16": "bfloat16", "fp16": "float16"}[trainer]
        message = f"samples in {rollout}, and the trainer computes in {trainer}: a training-inference mismatch from "
        yield run.warning(name, message + "the first step on.", f"{name}={long_name}")
    elif differences := rollout_differences(run):
        message = f"but the rollout has {' and '.join(differences)}: a training-inference mismatch from the first step "
        yield run.note(name, message + "on, if that is what is studied.")
    name = f"{run.engine}.model_dtype"
    if run.is_fsdp and short_dtype(run.get(name), "fp32") != "fp32" and not run.lora_rank:
        message = "is what the optimiser updates: a step of 1e-6 is lost in its rounding."
        yield run.warning(name, message, f"{name}=fp32", advice="The forward pass is in bf16 all the same.")
    name = f"{run.engine}.dtype"
    if run.is_fsdp and short_dtype(run.get(name)) not in ("bf16", trainer):
        message = f"is not read by verl's FSDP engine, which computes in {trainer}."
        read = f"{run.engine}.mixed_precision"
        wanted = short_dtype(run.get(name))
        parts = f"{{param_dtype:{wanted},reduce_dtype:fp32,buffer_dtype:fp32}}"
        yield run.warning(name, message, run.override(read, parts), f"{name}=bfloat16")


@rule
def fp16(run: RunConfig) -> Findings:
    """fp16: a model that vLLM takes in it, a dense one with Megatron, and gradients that its range holds."""
    name = f"{ROLLOUT}.dtype"
    model = run.architecture
    if short_dtype(run.get(name)) == "fp16" and model is not None and model.kind in _NOT_IN_FP16:
        message = f"is refused by vLLM for a model of the type {model.kind}, which overflows in it."
        yield run.error(name, message, f"{name}=bfloat16", advice="The trainer then has to be in bf16, too.")
    if compute_dtype(run) != "fp16":
        return
    if run.is_megatron and model is not None and model.experts:
        message = "trains a mixture of experts, and Megatron's fp16 is for dense models, verl's documentation says."
        yield run.warning(f"{run.engine}.dtype", message, f"{run.engine}.dtype=bfloat16 {name}=bfloat16")
    name = f"{run.engine}.dtype" if run.is_megatron else f"{run.engine}.mixed_precision.param_dtype"
    share = loss_share(run)
    if share < _SMALLEST_NORMAL:
        message = (
            f"but a token's gradient begins at {share:.1e}, its share of the loss times the first loss scale, and is "
            f"below fp16's smallest normal number, {_SMALLEST_NORMAL:.1e}."
        )
        bf16 = "bfloat16" if run.is_megatron else "bf16"
        yield run.warning(name, message, f"{name}={bf16} {ROLLOUT}.dtype=bfloat16")
    else:
        if trainer_numbers(run).head == "fp32":
            message = "but fp16 ends at 6e-8, where small gradients behind the LM head become 0. "
        else:
            message = (
                f"but fp16 ends at 6e-8: a token's gradient with respect to the logits of others less likely than "
                f"{smallest_probability(share):.1e} is 0, until the loss scale has grown (twofold in "
                f"{1000 if run.is_megatron else 400} updates without an overflow). "
            )
        message += "actor/loss_scale and actor/skipped_update_frac show what becomes of the loss scale."
        yield run.note(name, message)


def loss_share(run: RunConfig) -> float:
    """The least weight that a token has in a rank's loss, times the scale that fp16's gradients are first taken with.

    The loss of a mini-batch is a sum over its tokens, of which each is divided by the number of samples and by a
    length: the constant of token-sum-norm, or at most that of the longest response. verl multiplies it by the number of
    ranks, over which the gradients are averaged in fp32.
    """
    scale = 32_768 if run.is_megatron else 65_536
    length = run.get(f"{ACTOR}.loss_scale_factor") or run.response_length
    return scale * run.data_parallel / (run.mini_batch * run.responses * float(length))


def smallest_probability(share: float) -> float:
    """The probability of a token below which the gradient of its logit is 0 in fp16, with an advantage of 1.

    Args:
        share: see ``loss_share``. The logit's gradient is the token's probability times that.
    """
    return _ROUNDED_TO_ZERO / share


@rule
def head(run: RunConfig) -> Findings:
    """An LM head in fp32 is one on both sides, in engines that have it, and leaves verl's FP8 what it needs."""
    trainer = run.get(TRAINER_HEAD)
    if trainer and not run.is_fsdp:
        message = f"is not read by {run.strategy}: only verl's FSDP engine gets a head in fp32 from drpo-verl."
        yield run.error(TRAINER_HEAD, message, f"{TRAINER_HEAD}=null")
    elif trainer and short_dtype(trainer, "") != "fp32":
        yield run.error(TRAINER_HEAD, "is not float32, which is what there is.", f"{TRAINER_HEAD}=float32")
    fused = f"{MODEL}.use_fused_kernels"
    if trainer and run.get(fused):
        message = "computes the logits by itself, past the head that is to be in fp32."
        yield run.error(fused, message, f"{fused}=False", f"{TRAINER_HEAD}=null")
    heads = {ROLLOUT_HEAD: rollout_numbers(run).head, TRAINER_HEAD: trainer_numbers(run).head}
    for name, other in ((ROLLOUT_HEAD, TRAINER_HEAD), (TRAINER_HEAD, ROLLOUT_HEAD)):
        if run.get(name) and heads[name] == "fp32" != heads[other]:
            message = "has the LM head in fp32 on one side only, which adds to the mismatch instead of taking from it."
            both = [run.override(other, "float32")] if run.is_fsdp and is_vllm(run) else []
            yield run.warning(name, message, *both, f"{name}=null")
    if run.get(HF_OVERRIDES) and run.get(QUANTIZATION) == "fp8" and not run.get(f"{HF_OVERRIDES}.quantization_config"):
        name = f"{HF_OVERRIDES}.quantization_config"
        message = "but the rest of hf_overrides replaces verl's own, and vLLM would not know in which blocks FP8 is."
        yield run.error(name, message, run.override(name, _fp8_config(run)), advice="That is verl's own.")


def _fp8_config(run: RunConfig) -> str:
    """What verl gives to vLLM for FP8 (``vllm_async_server.py``: ``FP8_BLOCK_QUANT_KWARGS``), as on a command line."""
    layers = run.architecture.layers if run.architecture and run.architecture.experts else 0
    routers = ",".join(f"model.layers.{layer}.mlp.gate" for layer in range(layers))
    blocks = f"weight_block_size:[{_BLOCK},{_BLOCK}],ignored_layers:[{routers}]"
    return f"{{activation_scheme:dynamic,fmt:e4m3,quant_method:fp8,{blocks}}}"


@rule
def vllm_quantization(run: RunConfig) -> Findings:
    """vLLM's own quantisation is one that weight syncs go through: an emulated format, on a CPU."""
    name, value = VLLM_QUANTIZATION, str(run.get(VLLM_QUANTIZATION, ""))
    if value and not value.startswith(EMULATED):
        message = "is vLLM's own, and verl quantises what it sends in a weight sync for its own setting only."
        yield run.warning(name, message, f"{name}=null", f"{name}=null {QUANTIZATION}=fp8")
    if not value.startswith(EMULATED):
        return
    if value.removeprefix(EMULATED) not in EMULATED_FORMATS:
        message = f"is none of {', '.join(f'{EMULATED}{each}' for each in EMULATED_FORMATS)}."
        yield run.error(name, message, *(f"{name}={EMULATED}{each}" for each in EMULATED_FORMATS))
    if not run.on_cpu:
        message = "is an emulation, which drpo-verl adds to vLLM on a CPU, where no kernel computes in such formats."
        advice = "On a GPU, verl's rollout.quantization and vLLM's own formats do."
        yield run.error(name, message, f"{name}=null", f"{name}=null {QUANTIZATION}=fp8", advice=advice)
    elif not is_vllm(run):
        message = f"is vLLM's, and the rollout engine is {run.get(f'{ROLLOUT}.name')}."
        yield run.error(name, message, f"{name}=null", f"{ROLLOUT}.name=vllm")
    if run.get(QUANTIZATION):
        yield run.error(name, f"replaces {QUANTIZATION}={run.get(QUANTIZATION)}.", f"{name}=null")


@rule
def fp8(run: RunConfig) -> Findings:
    """FP8: in blocks that the split model has; in training with Megatron only, on both sides and with one recipe."""
    from torch.backends.cpu import get_cpu_capability

    name, cache = QUANTIZATION, KV_CACHE_DTYPE
    rollout = run.get(name)
    if rollout not in (None, "fp8", "torchao", "ascend"):
        message = "is none of fp8, torchao and ascend, which are what verl has."
        yield run.error(name, message, f"{name}=null", f"{name}=fp8")
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

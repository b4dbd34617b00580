"""Rules about precision: dtypes on both sides, FP8 in the rollout and end to end, adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from drpo_verl.check.registry import rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import ACTOR, MODEL, ROLLOUT, Run

_NAMES = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
    "float": "fp32",
    "32": "fp32",
    "16": "fp16",
}
_BLOCK = 128
"""verl quantises a rollout's weights in blocks of 128 x 128 (``vllm_async_server.py``: ``weight_block_size``)."""
_FINEST_BLOCK = 32
_WIDE = {"avx512f", "amx_tile"}
_FP8_SCALES = "NVTE_FP8_BLOCK_SCALING_FP32_SCALES"
_LARGEST_LORA_RANK = 512
_MERGE = f"{MODEL}.lora.merge"


def short_dtype(name: object, default: str = "bf16") -> str:
    """bf16, fp16 or fp32, however it is written.

    Args:
        name: as torch, vLLM or verl call it.
        default: for one that says nothing (None, auto).
    """
    return _NAMES.get(str(name).lower(), default)


def compute_dtype(run: Run) -> str:
    """In which the trainer's forward pass computes."""
    if run.is_megatron:
        return short_dtype(run.get(f"{run.engine}.dtype"))
    return short_dtype(run.get(f"{run.engine}.mixed_precision.param_dtype"))


def fp8_training(run: Run) -> bool:
    """Whether Megatron's matrix products are in FP8."""
    return bool(run.is_megatron and run.get(f"{run.engine}.override_transformer_config.fp8"))


@rule
def precision(run: Run) -> Iterable[Finding]:
    """Both engines compute in known precisions of the same range, and the optimiser's weights are fp32."""
    name = f"{ROLLOUT}.dtype"
    value = run.get(name, "bfloat16")
    if str(value).lower() not in (*_NAMES, "auto"):
        yield run.error(name, "is no dtype of vLLM.", "Set it to bfloat16, float16 or float32.")
        return
    rollout, trainer = short_dtype(value), compute_dtype(run)
    if rollout != trainer:
        note = "fp32" in (rollout, trainer) or {rollout, trainer} == {"bf16", "fp32"}
        yield run.found(
            "note" if note else "warning",
            name,
            f"samples in {rollout}, and the trainer computes in {trainer}: a training-inference mismatch from the "
            "first step on" + (", if that is what is studied." if note else "."),
            "" if note else "Set both to the same.",
        )
    master = short_dtype(run.get(f"{run.engine}.model_dtype"), "fp32")
    if run.is_fsdp and master != "fp32" and not run.lora_rank:
        yield run.warning(
            f"{run.engine}.model_dtype",
            "is what the optimiser updates: a step of 1e-6 is lost in its rounding.",
            "Set it to fp32; the forward pass is in bf16 all the same.",
        )


@rule
def fp8(run: Run) -> Iterable[Finding]:
    """FP8: in blocks that the split model has; in training with Megatron only, on both sides and with one recipe."""
    name = f"{ROLLOUT}.quantization"
    rollout = run.get(name)
    if rollout not in (None, "fp8", "torchao", "ascend"):
        yield run.error(name, "is none of fp8, torchao and ascend, which are what verl has.", "Set it to fp8, or null.")
    if rollout == "fp8" and run.on_cpu:
        yield run.error(
            name,
            "needs AMX on a CPU, and verl's loader CUDA.",
            "Leave it out; rollout.engine_kwargs.vllm.kv_cache_dtype=fp8_e4m3 is a mismatch that a CPU can make.",
        )
    cache = f"{ROLLOUT}.engine_kwargs.vllm.kv_cache_dtype"
    here = run.get("ray_kwargs.ray_init.address") == "local"
    if run.on_cpu and here and str(run.get(cache)).startswith("fp8") and not _WIDE & _cpu_flags():
        yield run.error(
            cache, "needs AVX-512 or AMX with vLLM on a CPU, and this one has neither.", f"Set {cache}=auto."
        )
    if rollout == "fp8" and run.architecture is not None:
        yield from _blocks(run)
    if rollout == "fp8" and run.lora_rank and not run.get(_MERGE, False):
        yield run.warning(
            name,
            "with adapters: verl's loader quantises the weights that it is sent, and of LoRA those are adapters.",
            f"Set {_MERGE}=true, or leave one of the two out.",
        )
    yield from _fp8_training(run)


def _cpu_flags() -> set[str]:
    """What this machine's CPU can do, as Linux names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return set(flags.split())
    return set()


def _blocks(run: Run) -> Iterable[Finding]:
    model, size = run.architecture, run.rollout_tensor_parallel
    assert model is not None
    if model.experts and run.whole(f"{ROLLOUT}.expert_parallel_size", 1) > 1:
        return  # experts stay whole
    what, width = ("an expert", model.expert_intermediate) if model.experts else ("an MLP", model.intermediate)
    if width % (size * _BLOCK) == 0:
        return
    # vLLM 0.30 cuts the blocks of experts finer where it can (refine_fp8_moe_block_shape), and refuses all else.
    finer = bool(model.experts) and width % (size * _FINEST_BLOCK) == 0
    sizes = (each for each in range(1, size + 1) if run.rollout_world % each == 0)
    fitting = max(each for each in sizes if width % (each * _BLOCK) == 0 or each == 1)
    yield run.found(
        "warning" if finer else "error",
        f"{ROLLOUT}.tensor_model_parallel_size",
        f"leaves {width / size:g} of the {width} columns of {what} to a card, which FP8's blocks of {_BLOCK} do not "
        + ("fit: vLLM cuts them finer (0.30), or refuses them (earlier versions)." if finer else "fit: vLLM refuses."),
        f"Set it to {fitting}" + (", or use expert parallelism." if model.experts else "."),
    )


def _fp8_training(run: Run) -> Iterable[Finding]:
    if not run.is_megatron:
        for name in (
            f"{ACTOR}.megatron.override_transformer_config.fp8",
            f"{run.engine}.override_transformer_config.fp8",
        ):
            if run.get(name):
                yield run.error(
                    name,
                    f"is Megatron's, and the engine is {run.strategy}, which trains in no FP8.",
                    "Compose with model_engine=megatron.",
                )
        return
    if not fp8_training(run):
        return
    transformer = f"{run.engine}.override_transformer_config"
    recipe = run.get(f"{transformer}.fp8_recipe")
    optimizers = run.get(f"{ACTOR}.optim.override_optimizer_config.fp8_recipe")
    if recipe != "blockwise":
        yield run.warning(
            f"{transformer}.fp8_recipe",
            "is not the recipe of the rollout's blocks.",
            "Set it to blockwise, as verl does.",
        )
    if optimizers != recipe:
        yield run.error(
            f"{ACTOR}.optim.override_optimizer_config.fp8_recipe",
            f"is not the model's ({recipe}).",
            f"Set it to {recipe}.",
        )
    if run.get(f"{ROLLOUT}.quantization") != "fp8":
        yield run.warning(
            f"{ROLLOUT}.quantization",
            "but the trainer computes in FP8: the rollout is the more precise of the two.",
            "Set it to fp8 for FP8 end to end.",
        )
    setting = f"ray_kwargs.ray_init.runtime_env.env_vars.{_FP8_SCALES}"
    if str(run.get(setting)) != "1":
        yield run.warning(
            setting,
            "but without it the trainer's scales are powers of two, and the rollout's are not.",
            'Set it to "1".',
        )


@rule
def lora(run: Run) -> Iterable[Finding]:
    """Adapters are set where the engine in use reads them, with a rank that vLLM has, and reach a separate rollout."""
    fsdps, megatrons = f"{MODEL}.lora_rank", f"{MODEL}.lora.rank"
    unread, read = (fsdps, megatrons) if run.is_megatron else (megatrons, fsdps)
    if run.whole(unread, 0) and not run.whole(read, 0):
        yield run.error(
            unread, f"is not read by {run.strategy}, while the rollout makes room for adapters.", f"Set {read}."
        )
    if run.lora_rank > _LARGEST_LORA_RANK:
        yield run.error(
            read, f"is above {_LARGEST_LORA_RANK}, the largest that vLLM has.", "Set it to 32, the paper's."
        )
    if run.lora_rank and run.standalone_rollout and not run.get(_MERGE, False):
        # verl, engine_workers.py: update_weights asks for the parameters as before their first sync.
        yield run.error(
            _MERGE,
            "but to a rollout on its own cards verl sends the base model without its adapters: it would sample from "
            "the base model for ever.",
            "Set it to true.",
        )

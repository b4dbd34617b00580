"""The numbers in which a run's two engines compute, and how those of the rollout differ from the trainer's."""

from __future__ import annotations

from dataclasses import dataclass

from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import MODEL, ROLLOUT

_NAMES = {
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "half", "16"), "fp16"),
    **dict.fromkeys(("fp32", "float32", "float", "32"), "fp32"),
}
"""The short name of a precision, by each of the names that torch, vLLM and verl have for it."""

EMULATED = "emulated_"
"""How the names begin of the quantisations that ``drpo_verl.cpu.emulated_weights`` adds to vLLM's."""
EMULATED_FORMATS = ("fp8", "int8", "int4", "int3")
"""What follows in these names: the format that weights go through and come back from."""
QUANTIZATION = f"{ROLLOUT}.quantization"
"""verl's setting, which takes the formats that verl knows to quantise a weight sync to."""
VLLM_QUANTIZATION = f"{ROLLOUT}.engine_kwargs.vllm.quantization"
"""vLLM's own argument, which replaces verl's."""
KV_CACHE_DTYPE = f"{ROLLOUT}.engine_kwargs.vllm.kv_cache_dtype"
HF_OVERRIDES = f"{ROLLOUT}.engine_kwargs.vllm.hf_overrides"
"""Changes of the model's ``config.json`` for vLLM, which replace those that verl makes itself."""
ROLLOUT_HEAD = f"{HF_OVERRIDES}.head_dtype"
"""vLLM's precision of the LM head."""
TRAINER_HEAD = f"{MODEL}.override_config.head_dtype"
"""FSDP's, which ``drpo_verl.adapters.head`` reads from the model's configuration."""


def is_dtype(name: object) -> bool:
    """Whether it is the name of a precision, of torch, vLLM or verl."""
    return str(name).lower() in _NAMES


def short_dtype(name: object, default: str = "bf16") -> str:
    """The short name of a precision: bf16, fp16 or fp32.

    Args:
        name: as torch, vLLM or verl call it.
        default: for one that says nothing (None, auto).
    """
    return _NAMES.get(str(name).lower(), default)


def compute_dtype(run: RunConfig) -> str:
    """The short name of the precision in which the trainer's forward pass computes."""
    if run.is_megatron:
        return short_dtype(run.get(f"{run.engine}.dtype"))
    return short_dtype(run.get(f"{run.engine}.mixed_precision.param_dtype"))


def fp8_training(run: RunConfig) -> bool:
    """Whether Megatron's matrix products are in FP8."""
    return bool(run.is_megatron and run.get(f"{run.engine}.override_transformer_config.fp8"))


def is_vllm(run: RunConfig) -> bool:
    """Whether the rollout engine is vLLM, which alone reads the settings in ``engine_kwargs.vllm``."""
    return bool(run.get(f"{ROLLOUT}.name", "vllm") == "vllm")


@dataclass(frozen=True)
class Numbers:
    """What an engine computes in.

    Attributes:
        dtype: the short name of the precision of its activations: bf16, fp16 or fp32.
        head: the same for its LM head, the last projection.
        kv_cache: of keys and values, as vLLM calls it; that of the activations for an engine without such a setting.
        weights: the format that the weights of linear layers are rounded to, as "fp8" or "int4"; the activations'
            precision for plain weights.
        emulated: whether the weights go through their format and back, and products are computed in ``dtype``.
    """

    dtype: str
    head: str
    kv_cache: str
    weights: str
    emulated: bool = False

    def __str__(self) -> str:
        """In words, as "bf16, weights in fp8, a KV cache in fp8_e4m3"; what is in ``dtype`` goes without saying."""
        back = " and back" if self.emulated else ""
        parts = {"weights in": f"{self.weights}{back}", "a KV cache in": self.kv_cache, "an LM head in": self.head}
        return ", ".join([self.dtype, *(f"{what} {value}" for what, value in parts.items() if value != self.dtype)])


def trainer_numbers(run: RunConfig) -> Numbers:
    """What the trainer's forward pass computes in."""
    dtype = compute_dtype(run)
    head = dtype if run.is_megatron else short_dtype(run.get(TRAINER_HEAD), dtype)
    return Numbers(dtype, head, dtype, "fp8" if fp8_training(run) else dtype)


def rollout_numbers(run: RunConfig) -> Numbers:
    """What the rollout engine computes in."""
    dtype = short_dtype(run.get(f"{ROLLOUT}.dtype"))
    cache, head, quantization = "auto", None, run.get(QUANTIZATION)
    if is_vllm(run):  # no other engine reads these
        cache, head = str(run.get(KV_CACHE_DTYPE, "auto")), run.get(ROLLOUT_HEAD)
        quantization = run.get(VLLM_QUANTIZATION) or quantization
    weights = str(quantization or dtype)
    return Numbers(
        dtype,
        short_dtype(head, dtype),
        short_dtype(cache, dtype if cache == "auto" else cache),
        weights.removeprefix(EMULATED),
        weights.startswith(EMULATED),
    )


def rollout_differences(run: RunConfig) -> tuple[str, ...]:
    """How the rollout's numbers differ from the trainer's, each as a phrase; empty where all of them are the same.

    The kernels of the two engines differ all the same. What is named here is rounding that only one of them does, from
    which a training-inference mismatch comes that no amount of updates explains.

    Example:
        ``("activations in bf16, the trainer's in fp32", "a KV cache in fp8_e4m3")``
    """
    rollout, trainer = rollout_numbers(run), trainer_numbers(run)
    found = []
    if rollout.dtype != trainer.dtype:
        found.append(f"activations in {rollout.dtype}, the trainer's in {trainer.dtype}")
    if rollout.weights not in (rollout.dtype, trainer.weights):
        emulated = " and back (an emulation)" if rollout.emulated else ""
        found.append(f"weights rounded to {rollout.weights}{emulated}")
    elif trainer.weights == "fp8" != rollout.weights:
        found.append(f"weights in {rollout.weights}, the trainer's in fp8")
    if rollout.kv_cache != rollout.dtype:
        found.append(f"a KV cache in {rollout.kv_cache}")
    heads = (rollout.head, trainer.head)
    if heads[0] != heads[1] and heads != (rollout.dtype, trainer.dtype):
        found.append(f"an LM head in {rollout.head}, the trainer's in {trainer.head}")
    return tuple(found)

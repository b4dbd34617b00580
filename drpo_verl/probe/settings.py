"""The options of a probe: one model, two engines, and the tokens on which they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from drpo_verl.configuration.precision import EMULATED, EMULATED_FORMATS
from drpo_verl.errors import require_option

PRECISIONS = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Settings:
    """Options of a probe. The defaults are verl's, for both engines, except for the number of tokens.

    Attributes:
        model: what ``drpo_verl.models.resolve.resolve`` takes.
        prompts: a verl parquet file, or a text file with one prompt per line; None for arithmetic problems.
        count: number of prompts, from the beginning of the file.
        samples: number of responses to each prompt.
        max_tokens: length of the longest response.
        dtype: precision of the rollout engine, one of ``PRECISIONS``.
        kv_cache_dtype: precision of vLLM's KV cache, e.g. "fp8_e4m3"; "auto" for that of the model.
        quantization: vLLM's quantisation, e.g. "fp8"; None for none.
        weights: format that vLLM's weights go through and come back from, one of ``EMULATED_FORMATS``; None for none.
        tensor_parallel_size: number of cards over which the rollout engine splits the model.
        gpu_memory_utilization: share of each card's memory that vLLM may take; None for vLLM's own default.
        temperature: sampling temperature, by which both engines divide the logits; above 0.
        top_p: sampling top-p; below 1, mu is the truncated distribution and pi is not.
        top_k: sampling top-k; -1 truncates nothing, any other value truncates mu and not pi.
        seed: seed of the sampling and of the arithmetic problems.
        train_dtype: precision in which the training engine computes; its fp32 parameters are rounded to it, as in FSDP.
        head_dtype: precision of the LM head of both engines, "float32"; None for that of each engine.
        share: share of the diverging tokens that may lie outside the suggested delta; between 0 and 1.

    Raises:
        UserError: an option has no meaning; the message names it, its value and the remedy.
    """

    model: str
    prompts: Path | None = None
    count: int = 32
    samples: int = 4
    max_tokens: int = 128
    dtype: str = "bfloat16"
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    weights: str | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int = 0
    train_dtype: str = "bfloat16"
    head_dtype: str | None = None
    share: float = 0.01

    def __post_init__(self) -> None:
        """Validate; see the class."""
        require = partial(require_option, self)
        for name in ("count", "samples", "max_tokens", "tensor_parallel_size"):
            require(name, getattr(self, name) >= 1, "must be at least 1.")
        for name in ("dtype", "train_dtype"):
            require(name, getattr(self, name) in PRECISIONS, f"is not one of {', '.join(PRECISIONS)}.")
        formats = ", ".join(EMULATED_FORMATS)
        require("weights", self.weights in (None, *EMULATED_FORMATS), f"is not one of {formats}.")
        message = f"leaves no room for --quantization={self.quantization}: give one of the two."
        require("weights", self.weights is None or self.quantization is None, message)
        require("head_dtype", self.head_dtype in (None, "float32"), "can only be float32.")
        require("temperature", self.temperature > 0, "must be above 0: greedy decoding has no distribution.")
        require("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1.")
        require("top_k", self.top_k == -1 or self.top_k >= 1, "must be at least 1, or -1 for no truncation.")
        require("share", 0 < self.share < 1, "is a share of tokens: it must be between 0 and 1.")


def vllm_quantization(settings: Settings) -> str | None:
    """What vLLM calls the quantisation of its weights; None for none."""
    return f"{EMULATED}{settings.weights}" if settings.weights else settings.quantization


def describe_rollout(settings: Mapping[str, Any]) -> str:
    """Name the precisions of the rollout engine in a result's settings, as "bfloat16, fp8_e4m3 KV cache"."""
    cache = f"{settings['kv_cache_dtype']} KV cache" if settings["kv_cache_dtype"] != "auto" else None
    weights = f"weights through {settings['weights']}" if settings.get("weights") else None
    head = f"{settings['head_dtype']} LM head" if settings.get("head_dtype") else None
    return ", ".join(filter(None, (settings["dtype"], cache, settings["quantization"], weights, head)))

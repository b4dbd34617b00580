"""What to measure: one model, two engines, and the tokens to compare them on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drpo_verl.errors import UserError

PRECISIONS = ("bfloat16", "float16", "float32")


class ProbeError(UserError):
    """The probe can not go on; the message names the setting, its value and the remedy."""


@dataclass(frozen=True)
class Settings:
    """The defaults are verl's, for both engines, except for how many tokens there are.

    Attributes:
        model: a Hugging Face folder or name, or a key of ``drpo_verl.models.resolve.PREPARED``.
        prompts: a verl parquet file, or a text file with a prompt a line; None for arithmetic problems.
        count: how many prompts, from the beginning of the file.
        samples: responses to each.
        max_tokens: the longest response.
        dtype: the rollout engine's, one of ``PRECISIONS``.
        kv_cache_dtype: vLLM's, e.g. "fp8_e4m3"; "auto" for the model's.
        quantization: vLLM's, e.g. "fp8"; None for none.
        tensor_parallel_size: of the rollout engine.
        temperature: of the sampling; both engines divide the logits by it. > 0.
        top_p: of the sampling; below 1, mu is the truncated distribution and pi is not.
        top_k: likewise; -1 for no truncation.
        seed: of the sampling, and of the arithmetic problems.
        train_dtype: in which the training engine computes; its parameters are fp32 and are rounded to it, as FSDP does.
        share: of the diverging tokens to be outside the suggested delta; in (0, 1).

    Raises:
        ProbeError: naming the option, its value and the remedy.
    """

    model: str
    prompts: Path | None = None
    count: int = 32
    samples: int = 4
    max_tokens: int = 128
    dtype: str = "bfloat16"
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    tensor_parallel_size: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int = 0
    train_dtype: str = "bfloat16"
    share: float = 0.01

    def __post_init__(self) -> None:
        """Validate; see the class."""
        for name in ("count", "samples", "max_tokens", "tensor_parallel_size"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1.")
        for name in ("dtype", "train_dtype"):
            self._require(name, getattr(self, name) in PRECISIONS, f"is not one of {', '.join(PRECISIONS)}.")
        self._require("temperature", self.temperature > 0, "must be above 0: greedy decoding has no distribution.")
        self._require("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1.")
        self._require("top_k", self.top_k == -1 or self.top_k >= 1, "must be at least 1, or -1 for no truncation.")
        self._require("share", 0 < self.share < 1, "is a share of tokens: it must be between 0 and 1.")

    def _require(self, name: str, fulfilled: bool, remedy: str) -> None:
        if not fulfilled:
            raise ProbeError(f"--{name.replace('_', '-')}={getattr(self, name)!r} {remedy}")

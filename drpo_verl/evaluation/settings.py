"""What to evaluate, and how to sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drpo_verl.errors import UserError


@dataclass(frozen=True)
class Settings:
    """The sampling is DRPO's for AIME, except for `max_tokens`; DPPO's is k 32, temperature 0.7, top-p 0.95.

    Attributes:
        model: a Hugging Face folder or name, a checkpoint of verl, or a key of ``drpo_verl.models.resolve.PREPARED``.
        data: a verl parquet file.
        k: samples a problem.
        temperature: of the sampling; 0 for greedy decoding.
        top_p: of the sampling.
        max_tokens: the longest response.
        tensor_parallel_size: vLLM's.
        dtype: vLLM's.
        seed: of the sampling, and of the intervals.

    Raises:
        UserError: naming the option, its value and the remedy.
    """

    model: str
    data: Path
    k: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 8192
    tensor_parallel_size: int = 1
    dtype: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate; see the class."""
        for name in ("k", "max_tokens", "tensor_parallel_size"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1.")
        self._require("temperature", self.temperature >= 0, "must be at least 0.")
        self._require("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1.")
        self._require(
            "k", self.temperature > 0 or self.k == 1, "with --temperature=0 gives the same response each time."
        )

    def _require(self, name: str, fulfilled: bool, remedy: str) -> None:
        if not fulfilled:
            raise UserError(f"--{name.replace('_', '-')}={getattr(self, name)!r} {remedy}")

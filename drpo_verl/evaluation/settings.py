"""The options of an evaluation: a model, a file of problems, and how to sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from drpo_verl.errors import require_option


@dataclass(frozen=True)
class Settings:
    """Options of an evaluation.

    The defaults sample as DRPO does for AIME; DPPO samples with k 32, temperature 0.7 and top-p 0.95.

    Attributes:
        model: what ``drpo_verl.models.resolve.resolve`` takes.
        data: a verl parquet file.
        k: number of samples of each row.
        temperature: sampling temperature; 0 for greedy decoding.
        top_p: sampling top-p.
        max_tokens: length of the longest response.
        tensor_parallel_size: number of cards over which vLLM splits the model.
        gpu_memory_utilization: share of each card's memory that vLLM may take; None for vLLM's own default.
        dtype: precision of vLLM.
        seed: seed of the sampling and of the intervals.

    Raises:
        UserError: an option has no meaning; the message names it, its value and the remedy.
    """

    model: str
    data: Path
    k: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 8192
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    dtype: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate; see the class."""
        require = partial(require_option, self)
        for name in ("k", "max_tokens", "tensor_parallel_size"):
            require(name, getattr(self, name) >= 1, "must be at least 1.")
        require("temperature", self.temperature >= 0, "must be at least 0.")
        require("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1.")
        samples_differ = self.temperature > 0 or self.k == 1
        require("k", samples_differ, "with --temperature=0 gives the same response each time.")

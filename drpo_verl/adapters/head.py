"""The LM head of verl's FSDP engine in fp32, as vLLM computes it with ``head_dtype``.

FSDP has no setting for it: under its autocast, the projection onto the vocabulary is rounded to bf16 like all others. A
model whose configuration has ``head_dtype`` (``actor_rollout_ref.model.override_config.head_dtype=float32``) gets
another forward of that one layer, with operands in the model's precision and products and sums in fp32. Since the
weight stays what FSDP has gathered, the layer needs no FSDP unit of its own, and may share it with the embedding.
"""

from __future__ import annotations

from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from drpo_verl.seams import SeamError, expect


def project_in_fp32(self: nn.Linear, hidden: Tensor) -> Tensor:
    """Return ``hidden @ weight.T + bias`` in fp32, of operands in the precision of the layer's weight.

    Args:
        self: the head; under FSDP's mixed precision, its weight is in the precision of the model.
        hidden: ``[..., H]``.

    Returns:
        Logits ``[..., V]``, fp32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(hidden.to(self.weight.dtype).float(), self.weight.float(), bias)


def compute_head_in_fp32(module: Any) -> None:
    """Make a causal language model's head compute in fp32.

    Raises:
        SeamError: the model has no head that is a plain linear layer.
    """
    head = module.get_output_embeddings()
    expect(type(head) is nn.Linear, f"{type(module).__name__}'s head", f"nn.Linear, found {type(head).__name__}")
    head.forward = MethodType(project_in_fp32, head)


def apply_to_engine(engine: type[Any]) -> None:
    """Have verl's FSDP engine do it to the models that it builds, where their configuration has ``head_dtype``.

    Args:
        engine: verl's ``FSDPEngine``, whose ``_build_module`` makes the model before FSDP wraps it.
    """
    original = getattr(engine, "_build_module", None)
    expect(callable(original), "FSDPEngine._build_module", "a method")
    assert original is not None

    @wraps(original)
    def build_module(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = original(self, *args, **kwargs)
        name = getattr(getattr(module, "config", None), "head_dtype", None)
        if name is None:
            return module
        if str(name).removeprefix("torch.") not in ("float32", "float", "fp32"):
            raise SeamError(f"head_dtype={name!r} of the trainer's model: only float32 is there, or leave it out")
        compute_head_in_fp32(module)
        return module

    engine._build_module = build_module

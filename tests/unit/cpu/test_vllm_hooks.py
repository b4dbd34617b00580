"""What is done to vLLM's CPU backend, on stand-ins for its classes, and what is said where it is another."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from drpo_verl.cpu import vllm_hooks
from drpo_verl.cpu.vllm_hooks import (
    INVARIANT_VARIABLE,
    draw_for_whole_prompts,
    invariant_linear,
    keep_linear_weights,
    repack_experts,
)


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


def _module(**attributes: Any) -> ModuleType:
    module = ModuleType("vllm_stand_in")
    vars(module).update(attributes)
    return module


def test_experts_are_packed_after_every_weight_sync() -> None:
    repack_experts(_module(UnquantizedFusedMoEMethod=_Method))
    method, layer = _Method(), SimpleNamespace()
    for weight in (1.0, 2.0, 3.0):
        method._setup_kernel(layer, w13=weight, w2=0.0)
        assert layer.weight == -weight


def test_a_linear_layer_reads_the_weight_that_it_has_now() -> None:
    packed = []
    module = _module(dispatch_cpu_unquantized_gemm=lambda layer, remove_weight: packed.append(remove_weight))
    keep_linear_weights(module)
    layer = SimpleNamespace(weight=torch.ones(2, 3))
    module.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    layer.weight = torch.full((2, 3), 2.0)
    assert layer.cpu_linear(torch.ones(1, 3), layer.weight, None).tolist() == [[6.0, 6.0]] and not packed
    module.dispatch_cpu_unquantized_gemm(SimpleNamespace(weight=torch.ones(2, 3, 4)), remove_weight=True)
    assert packed == [False]  # any other is packed, and keeps its parameter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_an_invariant_linear_layer_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((130, 192), (576, 192), (576,)))
    whole = invariant_linear(x, weight, bias)
    assert torch.equal(whole, invariant_linear(x.reshape(2, 65, 192), weight, bias).reshape(130, 576))
    torch.testing.assert_close(whole, torch.nn.functional.linear(x, weight, bias), rtol=2e-2, atol=2e-2)
    for rows in (1, 2, 3, 7, 8, 16, 31, 32, 33, 100):
        for start in (0, 1, 29):
            assert torch.equal(invariant_linear(x[start : start + rows], weight, bias), whole[start : start + rows])
    shuffled = torch.randperm(130, generator=generator)
    assert torch.equal(invariant_linear(x[shuffled], weight, bias), whole[shuffled])


def test_the_variable_decides_which_linear_function_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(dispatch_cpu_unquantized_gemm=lambda layer, remove_weight: None)
    keep_linear_weights(module)
    layer = SimpleNamespace(weight=torch.ones(2, 3))
    for value, function in (("1", invariant_linear), ("0", torch.nn.functional.linear)):
        monkeypatch.setenv(INVARIANT_VARIABLE, value)
        module.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        assert layer.cpu_linear is function


def test_a_sample_with_a_seed_draws_nothing_for_a_part_of_its_prompt() -> None:
    class Generator:
        """As PyTorch's of a CPU: it can not be set back."""

        drawn = 0

    class Runner:
        """As vLLM's: all draw, and those of which a part of the prompt is still to come are set back."""

        def __init__(self) -> None:
            self.input_batch = SimpleNamespace(generators={0: Generator(), 1: Generator(), 3: Generator()})
            self.discard_request_mask = SimpleNamespace(np=np.array([False, True, True, False]))

        def sample_tokens(self, grammar_output: object) -> list[int]:
            generators = self.input_batch.generators
            for generator in generators.values():
                generator.drawn += 1
            if any(generators.get(index) for index in self.discard_request_mask.np.nonzero()[0]):
                raise RuntimeError("CPU Generator does not use offset")
            return list(generators)

    with pytest.raises(RuntimeError, match="offset"):
        Runner().sample_tokens(None)
    module = _module(CPUModelRunner=Runner)
    draw_for_whole_prompts(module)
    runner = module.CPUModelRunner()
    assert runner.sample_tokens(None) == [0, 3]
    runner.discard_request_mask.np[1] = False
    assert sorted(runner.sample_tokens(None)) == [0, 1, 3]
    assert {index: each.drawn for index, each in runner.input_batch.generators.items()} == {0: 2, 1: 1, 3: 2}


@pytest.mark.parametrize(
    ("name", "attributes", "difference", "consequence"),
    [
        (vllm_hooks._LINEAR, {}, "dispatch_cpu_unquantized_gemm", "A weight sync may fail."),
        (vllm_hooks._LINEAR, {"dispatch_cpu_unquantized_gemm": lambda layer: None}, "missing remove_weight",
         "A weight sync may fail."),
        (vllm_hooks._EXPERTS, {}, "UnquantizedFusedMoEMethod", "experts sample nonsense."),
        (vllm_hooks._EXPERTS, {"UnquantizedFusedMoEMethod": type("Other", (), {"_setup_kernel": lambda self: None})},
         "missing layer, w13, w2", "experts sample nonsense."),
        (vllm_hooks._RUNNER, {}, "CPUModelRunner", "A sample with a seed may end vLLM."),
        (vllm_hooks._QUANTIZATION, {}, "register_quantization_config", "There are no emulated weights."),
    ],
)  # fmt: skip
def test_another_vllm_is_named_with_what_it_costs(
    name: str,
    attributes: dict[str, Any],
    difference: str,
    consequence: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for parent in (
        "vllm",
        "vllm.model_executor",
        "vllm.model_executor.layers",
        "vllm.model_executor.layers.fused_moe",
        "vllm.v1",
        "vllm.v1.worker",
    ):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, _module(**attributes))
    vllm_hooks.register.cache_clear()
    vllm_hooks.register()
    vllm_hooks.register()  # as each vLLM process may do more than once
    (message,) = (record.getMessage() for record in caplog.records if record.name == "drpo_verl")
    assert f"could not attach to {name}" in message and difference in message
    assert consequence in message and "vLLM 0.30" in message


def test_other_platforms_are_left_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    monkeypatch.setitem(sys.modules, vllm_hooks._LINEAR, _module())
    vllm_hooks.register.cache_clear()
    vllm_hooks.register()
    vllm_hooks.register.cache_clear()
    assert not caplog.records

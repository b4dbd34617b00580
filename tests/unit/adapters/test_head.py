"""The LM head in fp32: what it rounds, where it is put, and what is said where it can not be."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from drpo_verl.adapters.head import apply_to_engine, compute_head_in_fp32
from drpo_verl.seams import SeamError

TWO_LOGITS = [
    # Two logits, and log(p_0 / exact) where they are rounded to bf16: computed with numpy, not taken from a paper.
    ((17.30, 17.05), 0.000000),
    ((17.30, 14.05), -0.002404),
    ((30.11, 29.02), 0.008692),
    ((8.03, 7.96), -0.018885),
    ((25.55, 12.40), 0.000000),
]


def _model_with_logits(logits: tuple[float, float]) -> Any:
    """A head in bf16 that makes the logits of a hidden state of ones, out of operands that bf16 holds exactly."""
    head = nn.Linear(3, 2, bias=False, dtype=torch.bfloat16)
    left = torch.tensor(logits, dtype=torch.float64)
    with torch.no_grad():
        for column in range(3):  # 8 bits each
            head.weight[:, column] = left.to(torch.bfloat16)
            left = left - head.weight[:, column].double()
    return SimpleNamespace(get_output_embeddings=lambda: head)


@pytest.mark.parametrize(("logits", "log_error_of_bf16"), TWO_LOGITS)
def test_logits_are_not_rounded_to_bf16_any_more(logits: tuple[float, float], log_error_of_bf16: float) -> None:
    model, hidden = _model_with_logits(logits), torch.ones(1, 3, dtype=torch.bfloat16)
    exact = -math.log1p(math.exp(logits[1] - logits[0]))

    def log_error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            made = model.get_output_embeddings()(hidden).detach()
        return float(made.double().log_softmax(-1)[0, 0]) - exact

    assert log_error() == pytest.approx(log_error_of_bf16, abs=1e-6)
    compute_head_in_fp32(model)
    assert log_error() == pytest.approx(0.0, abs=3e-6)


@pytest.mark.parametrize(("number", "bf16", "fp16"), [
    (17.3, 17.25, 17.296875), (0.1, 0.10009765625, 0.0999755859375), (300.7, 300.0, 300.75),
    (65520.0, 65536.0, math.inf),
])  # fmt: skip
def test_the_operands_stay_in_the_precision_of_the_model(number: float, bf16: float, fp16: float) -> None:
    for dtype, rounded in ((torch.bfloat16, bf16), (torch.float16, fp16)):
        head = nn.Linear(1, 1, bias=False, dtype=dtype)
        compute_head_in_fp32(SimpleNamespace(get_output_embeddings=lambda head=head: head))
        with torch.no_grad():
            head.weight.fill_(1.0)
            made = head(torch.tensor([[number]]))  # as vLLM's hidden states are, in the model's precision
        assert made.dtype == torch.float32 and made.item() == rounded


def _llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class _Engine:
    """As verl's FSDPEngine: builds the module before it is wrapped."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def _build_module(self) -> LlamaForCausalLM:
        return _llama(**self.settings)


def test_a_model_with_head_dtype_gets_it_and_gradients_reach_the_tied_embedding() -> None:
    engine_class = type("FSDPEngine", (_Engine,), {})
    apply_to_engine(engine_class)
    ids, plain = torch.arange(6)[None], engine_class()._build_module()
    built = engine_class(head_dtype="float32")._build_module()
    gradients = []
    for module in (plain, built):
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(ids).logits
        assert logits.dtype == (torch.float32 if module is built else torch.bfloat16)
        logits.float().log_softmax(-1)[..., 0].sum().backward()
        gradients.append(module.get_input_embeddings().weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_another_precision_of_the_head_is_refused(name: str) -> None:
    engine_class = type("FSDPEngine", (_Engine,), {})
    apply_to_engine(engine_class)
    with pytest.raises(SeamError, match=f"head_dtype='{name}'.*only float32"):
        engine_class(head_dtype=name)._build_module()


def test_a_head_that_is_no_linear_layer_is_named() -> None:
    with pytest.raises(SeamError, match=r"SimpleNamespace's head: expected nn\.Linear, found Bilinear"):
        compute_head_in_fp32(SimpleNamespace(get_output_embeddings=lambda: nn.Bilinear(1, 1, 1)))


def test_an_engine_that_builds_otherwise_is_named() -> None:
    with pytest.raises(SeamError, match=r"FSDPEngine\._build_module"):
        apply_to_engine(type("FSDPEngine", (), {}))

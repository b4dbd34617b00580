"""The loss scale of fp16: updates that are left out are counted, and what the check says of small gradients is so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from drpo_verl.adapters.loss_scale import LossScale
from drpo_verl.preflight.precision import smallest_probability


def test_updates_that_overflow_are_counted_and_the_scale_is_the_last_one() -> None:
    parameter = torch.nn.Parameter(torch.ones(()))
    optimizer, scaler = torch.optim.SGD([parameter], lr=0.1), GradScaler("cpu", init_scale=1024.0)
    watched, engine = LossScale(), SimpleNamespace(scaler=scaler)
    for gradient in (1.0, float("inf"), 1.0, float("nan")):
        with watched.watch(engine):
            optimizer.zero_grad()
            scaler.scale(gradient * parameter).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watched.take() == {"loss_scale": [256.0], "skipped_update_frac": [0.5]}
    assert watched.take() == {}
    assert parameter.item() == pytest.approx(0.8)


@pytest.mark.parametrize("engine", [SimpleNamespace(), SimpleNamespace(scaler=None),
                                    SimpleNamespace(scaler=GradScaler("cpu", enabled=False))])  # fmt: skip
def test_a_trainer_without_a_scale_has_no_such_metrics(engine: SimpleNamespace) -> None:
    watched = LossScale()
    with watched.watch(engine):
        pass
    assert watched.take() == {}


@pytest.mark.parametrize(("scale", "kept"), [(1.0, 0.0), (32_768.0, 3.275871e-4), (65_536.0, 6.551743e-4)])
def test_a_gradient_is_kept_by_its_scale(scale: float, kept: float) -> None:
    assert torch.tensor(1e-8 * scale).half().item() == pytest.approx(kept, rel=1e-6)


@pytest.mark.parametrize("share", [0.5, 65_536 / (512 * 8192)])
def test_the_smallest_probability_with_a_gradient_is_where_fp16_rounds_to_zero(share: float) -> None:
    for factor, is_zero in ((0.99, True), (1.01, False)):
        other = torch.tensor(factor * smallest_probability(share)).logit()
        logits = torch.stack([torch.zeros(()), other]).requires_grad_()
        # The loss is computed in fp32, and its gradient goes back through logits in fp16.
        gradients: list[torch.Tensor] = []
        in_fp16 = logits.half().float() * 0 + logits
        in_fp16.register_hook(lambda gradient, seen=gradients: seen.append(gradient.half()))
        (share * in_fp16.log_softmax(-1)[0]).backward()
        assert (gradients[0][1].item() == 0) == is_zero

"""On the device, under bf16 autocast: the gradients of the papers' formulas, and one synchronisation a micro-batch."""

from __future__ import annotations

import warnings
from typing import Any

import oracle
import pytest
import torch
from test_gradients import CASES, Batch, Case, near_a_boundary
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig

from drpo_verl.adapters.config import TrustRegionLossConfig
from drpo_verl.losses import token_loss

ROWS, WIDTH = 8, 64
PLAIN_CASES = [case for case in CASES if case.penalty is None and case.restrict_to is None]


def _batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(ROWS, WIDTH, generator=generator)

    log_mu = -torch.rand(ROWS, WIDTH, generator=generator).mul(4).exp().sub(1)  # from certainty to e^-50
    log_pi, log_old = ((log_mu + 0.4 * normal()).clamp(max=0.0) for _ in range(2))
    lengths = torch.randint(1, WIDTH + 1, (ROWS, 1), generator=generator)
    partition = torch.rand(ROWS, WIDTH, generator=generator)
    return Batch(log_pi, log_mu, log_old, normal(), partition, torch.arange(WIDTH) < lengths)


@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_the_gradient_is_that_of_the_formula_in_float64(case: Case, device: str) -> None:
    region = case.region(delta=0.2, region_delta=0.1)
    batch = next(b for b in map(_batch, range(200)) if not near_a_boundary(case, region, b))
    anchor = batch.anchor(case.objective)
    exact_pi = batch.log_pi.double().requires_grad_()
    expected = oracle.objective(
        case.name, region, exact_pi, batch.log_mu.double(), batch.advantages.double(),
        log_anchor=anchor.double(), partition=batch.partition.double(),
    )  # fmt: skip
    (expected_gradient,) = torch.autograd.grad(-(expected * batch.mask).sum(), exact_pi)

    log_pi = batch.log_pi.to(device).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        result = token_loss(
            case.objective, region, log_pi, batch.log_mu.to(device), batch.advantages.to(device), batch.mask.to(device),
            log_anchor=anchor.to(device) if case.objective.recomputed_anchor else None,
            partition_divergence=batch.partition.to(device),
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(result.loss.sum(), log_pi)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(gradient.cpu().double(), expected_gradient, rtol=2e-5, atol=1e-6)


class _Synchronising(TorchDispatchMode):
    """Counts the operations that would make a CPU wait for a GPU, wherever they run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1]
        )
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["drpo", "dppo_binary_kl", "grpo"])
def test_a_micro_batch_costs_one_synchronisation(mode: str, device: str) -> None:
    batch = _batch(0)
    settings = TrustRegionLossConfig(loss_mode=mode, **({} if mode == "grpo" else {"delta": 0.2}))
    config = ActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=settings, use_torch_compile=False
    )
    fields = {
        "old_log_prob": batch.log_mu, "log_prob": batch.log_pi, "advantages": batch.advantages,
        "response_mask": batch.mask,
    }  # fmt: skip
    fields = {name: tensor.to(device) for name, tensor in fields.items()}
    # verl's own baseline synchronises for its metrics, too.
    allowed = 4 if mode == "grpo" else 0

    def run() -> None:
        fields["log_prob"].grad = None
        fields["log_prob"].requires_grad_()
        loss, _ = get_policy_loss_fn(mode)(**fields, loss_agg_mode="token-mean", config=config)
        loss.backward()

    with _Synchronising() as counted:
        run()
    assert len(counted.names) <= allowed, counted.names
    if device == "cuda":
        run()  # what is set up at the first call
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
        torch.cuda.set_sync_debug_mode("default")
        assert len([each for each in caught if "synchroni" in str(each.message)]) <= 1 + allowed

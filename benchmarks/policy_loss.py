"""Time and saved memory of the policy losses against others, in pairs: ``python -m benchmarks.policy_loss``.

Forward and backward of each loss on one [16, 4096] micro-batch, with every metric that it logs, through the function
that verl's actor calls, on one thread and on two. Each of ours runs in turn with verl's counterpart, and CPPO, whose
scope is a prefix, with the same mask of single tokens. A machine drifts: what counts is the median of the paired
ratios, and beside it the ratio of the fastest twentieths, which other work on the machine disturbs least.
"Diagnostics" are the moments, histograms and bins of the mismatch on top. A second table has the least that a prefix
scope can take: a running sum, and one rank of each response by several operations that find it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

if __name__ == "__main__":  # benchmarks.gpu has these losses on a GPU
    os.environ.setdefault("VERL_PLATFORM", "cpu")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig, PolicyLossConfig

from drpo_verl.adapters.config import TrustRegionLossConfig

ROWS, WIDTH = 16, 4096
THREADS = (1, 2)
PAIRS, WARM_UP = 200, 10
_ACTIVATION = 2**22
"""Elements of a tensor that is freed before anything is timed, as a forward pass frees its own: from then on the C
library keeps freed memory of that size, where else each call would take fresh pages from the kernel."""
_TV = {"loss_mode": "dppo_binary_tv", "delta": 0.2, "ratio_cap": 5.0}
_CPPO = {"loss_mode": "cppo", "delta": 0.2, "ratio_cap": 5.0, "w_min": 0.8, "delta_b": 0.02}
OURS: dict[str, dict[str, Any]] = {
    "drpo": {"loss_mode": "drpo", "delta": 0.5},
    "dppo_binary_tv": _TV,
    "dppo_binary_kl": {"loss_mode": "dppo_binary_kl", "delta": 0.05, "ratio_cap": 5.0},
    "cppo, delta_b fixed": _CPPO,
    "cppo, delta_b of each response": {**_CPPO, "delta_b_quantile": 0.9},
}
COUNTERPARTS = {
    "drpo": "dppo_tv", "dppo_binary_tv": "dppo_tv", "dppo_binary_kl": "dppo_kl",
    "cppo, delta_b fixed": "dppo_binary_tv", "cppo, delta_b of each response": "dppo_binary_tv",
}  # fmt: skip


def batch() -> dict[str, Tensor]:
    """A micro-batch of responses of different lengths, pi a little away from mu."""
    generator = torch.Generator().manual_seed(0)
    log_mu = -3 * torch.rand(ROWS, WIDTH, generator=generator)
    log_pi = (log_mu + 0.05 * torch.randn(ROWS, WIDTH, generator=generator)).clamp(max=0)
    lengths = torch.randint(WIDTH // 4, WIDTH + 1, (ROWS, 1), generator=generator)
    return {
        "old_log_prob": log_mu,
        "log_prob": log_pi.requires_grad_(),
        "advantages": torch.randn(ROWS, 1, generator=generator).expand(ROWS, WIDTH).contiguous(),
        "response_mask": torch.arange(WIDTH) < lengths,
    }


def step(name: str, data: dict[str, Tensor], diagnostics: bool = False) -> Callable[[], None]:
    """One forward and backward of a loss, ours or verl's."""
    policy_loss = TrustRegionLossConfig(**OURS[name], diagnostics=diagnostics) if name in OURS else PolicyLossConfig()
    mode = OURS[name]["loss_mode"] if name in OURS else name
    actor = ActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss)
    loss_fn = get_policy_loss_fn(mode)

    def run() -> None:
        data["log_prob"].grad = None
        loss, _ = loss_fn(**data, loss_agg_mode="token-mean", config=actor)
        loss.backward()

    return run


def seconds(run: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def saved_tensors(run: Callable[[], None]) -> int:
    """How many different [B, T] fp32 tensors are kept for the backward pass."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape == (ROWS, WIDTH) and tensor.dtype == torch.float32:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return len(kept)


def main() -> None:
    """Print the table."""
    table = Table(title=f"forward + backward with all metrics, [{ROWS}, {WIDTH}]")
    columns = ("threads", "loss", "ms", "against", "ms", "ratio: median of pairs", "of the fastest")
    for column in (*columns, "saved fp32 tensors", "against"):
        table.add_column(column, justify="right")
    torch.zeros(_ACTIVATION)
    data = batch()
    for threads, (ours, counterpart), diagnostics in product(THREADS, COUNTERPARTS.items(), (False, True)):
        torch.set_num_threads(threads)
        run, reference = step(ours, data, diagnostics), step(counterpart, data, diagnostics)
        pairs = [(seconds(run), seconds(reference)) for _ in range(WARM_UP + PAIRS)][WARM_UP:]
        times, times_of_reference = zip(*pairs, strict=True)
        table.add_row(
            str(threads),
            f"{ours} + diagnostics" if diagnostics else ours,
            f"{1e3 * statistics.median(times):.2f}",
            counterpart,
            f"{1e3 * statistics.median(times_of_reference):.2f}",
            f"{statistics.median(a / b for a, b in pairs):.2f}",
            f"{_fastest(times) / _fastest(times_of_reference):.2f}",
            str(saved_tensors(run)),
            str(saved_tensors(reference)),
        )
    Console(width=140).print(table, least_of_prefix(data))


def least_of_prefix(data: dict[str, Tensor]) -> Table:
    """The least that a prefix scope takes: a running sum, of which it has two, and one rank of each padded row.

    A percentile of each response takes more: two ranks, which differ with the responses' lengths.
    """
    distance = (data["log_prob"].detach().exp() - data["old_log_prob"].exp()).abs() * data["response_mask"]
    rank = WIDTH // 10 + 1  # counted from the largest

    def tokens() -> list[np.ndarray]:
        return [row[kept] for row, kept in zip(distance.numpy(), data["response_mask"].numpy(), strict=True)]

    operations: dict[str, Callable[[], object]] = {
        "torch.cumsum": lambda: distance.cumsum(-1),
        f"torch.topk({rank})": lambda: distance.topk(rank),
        f"torch.topk({rank}, sorted=False)": lambda: distance.topk(rank, sorted=False),
        "torch.kthvalue": lambda: distance.kthvalue(WIDTH - rank + 1),
        "torch.quantile": lambda: distance.quantile(0.9, dim=-1),
        "numpy.partition": lambda: np.partition(distance.numpy(), WIDTH - rank),
        "numpy.partition of the tokens": lambda: [np.partition(row, int(0.9 * row.size)) for row in tokens()],
    }
    losses = [step("dppo_binary_tv", data, diagnostics) for diagnostics in (False, True)]
    table = Table(title="the least that a prefix scope takes")
    for column in ("threads", "operation", "ms", "share of dppo_binary_tv", "of the same with diagnostics"):
        table.add_column(column, justify="right")
    for threads, (name, operation) in product(THREADS, operations.items()):
        torch.set_num_threads(threads)
        rounds = [[seconds(run) for run in (operation, *losses)] for _ in range(WARM_UP + PAIRS)][WARM_UP:]
        time, *of_losses = map(statistics.median, zip(*rounds, strict=True))
        table.add_row(str(threads), name, f"{1e3 * time:.2f}", *(f"{time / of_loss:.0%}" for of_loss in of_losses))
    return table


def _fastest(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20)[0]


if __name__ == "__main__":
    main()

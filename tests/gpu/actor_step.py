"""One rank of verl's FSDP2 actor on the fixed batch of the contract tests: its metrics, gradients and peak memory.

A process of its own for each device, which verl chooses when it is imported (by ``VERL_PLATFORM``):

    python actor_step.py MODEL OUT CASES

CASES is a JSON object: by name, Hydra overrides. OUT gets a JSON file and, beside it, the gradients of the first
optimiser step of each case.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
import actor_rank

from benchmarks.actor import be_the_only_rank

MODEL, OUT = sys.argv[1], Path(sys.argv[2])


def _gradients(optimiser: Optimizer) -> list[torch.Tensor]:
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    whole = (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in parameters)
    return [gradient.detach().float().cpu() for gradient in whole]


def main(cases: dict[str, list[str]]) -> None:
    """Train each case, and write what is compared."""
    be_the_only_rank()
    torch.backends.cuda.matmul.allow_tf32 = False
    first: list[torch.Tensor] = []

    def keep(optimiser: Optimizer, *_: Any) -> None:
        if not first:
            first.extend(_gradients(optimiser))

    register_optimizer_step_pre_hook(keep)
    metrics = {}
    for name, config in actor_rank.prepare(cases).items():
        first.clear()
        config.actor_rollout_ref.model.path = MODEL
        metrics[name] = actor_rank.train(config, OUT / "checkpoint")
        torch.save(list(first), OUT / f"{name}.pt")
    (OUT / "metrics.json").write_text(json.dumps(metrics, default=float))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[3]))

"""Muon in fp32: ``torch.optim.Muon`` orthogonalises in bf16, for which most CPUs have no instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration of K. Jordan, "Muon" (2024).

Five iterations bring the singular values to between 0.7 and 1.2.
"""
_ITERATIONS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return the matrix nearest to an fp32 matrix ``[M, N]`` that has singular values of about 1."""
    a, b, c = _COEFFICIENTS
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if wide is not matrix else x


class Muon(torch.optim.Optimizer):
    """An optimizer that updates each matrix by its orthogonalised momentum, without weight decay.

    Args:
        matrices: two-dimensional parameters.
        lr: learning rate of a square matrix; a tall one's is larger by the root of its aspect ratio.
        momentum: coefficient of Nesterov momentum.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all matrices that have a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["average"] = torch.zeros_like(matrix)
                average = state["average"]
                average.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalised(matrix.grad.lerp(average, group["momentum"]))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.add_(update, alpha=-group["lr"] * scale)
        return loss

"""Enforcements: what a token's divergence does to its gradient weight w, and to the objective's value.

``excess`` is the divergence of a token in units of its threshold, ``sign(A) * D / delta``: positive where the
policy gradient pushes pi further away from mu (diverging), negative where it brings pi back (converging),
above 1 where a diverging token has left the trust region.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drpo_verl.objectives.geometry import TokenRatio, indicator_positive_


@dataclass(frozen=True)
class Enforcement:
    """A weight and the objective that it is the gradient weight of.

    Attributes:
        weight: excess ``[B, T]`` -> w ``[B, T]``.
        value: (tokens, excess, w) -> the objective per unit of advantage ``[B, T]``, whose derivative with
            respect to log pi is ``r w``.
        corrects: whether w < 0 outside the region, so that a token there is brought back.
    """

    weight: Callable[[Tensor], Tensor]
    value: Callable[[TokenRatio, Tensor, Tensor], Tensor]
    corrects: bool


def _mask_weight(excess: Tensor) -> Tensor:
    return indicator_positive_(excess - 1.0).neg_().add_(1.0)


def _mask_value(tokens: TokenRatio, excess: Tensor, weight: Tensor) -> Tensor:
    return tokens.ratio * weight


def _quadratic_weight(excess: Tensor) -> Tensor:
    return 1.0 - excess


def _quadratic_value(tokens: TokenRatio, excess: Tensor, weight: Tensor) -> Tensor:
    # r A - |A| / (2 delta) D (r - 1), divided by A, since excess = sign(A) D / delta.
    return torch.addcmul(tokens.ratio, excess, tokens.ratio_minus_one, value=-0.5)


HARD_MASK = Enforcement(_mask_weight, _mask_value, corrects=False)
"""w = 0 for a diverging token outside the region, 1 elsewhere (PPO; DPPO, section 4)."""

QUADRATIC = Enforcement(_quadratic_weight, _quadratic_value, corrects=True)
"""w = 1 - excess: attenuates a diverging token, corrects it beyond the boundary, strengthens a converging one:
the advantage-weighted quadratic regulariser of DRPO (section 3) and SPO."""

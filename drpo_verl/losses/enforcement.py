"""Enforcements: what a token's divergence does to its gradient weight w, and to the objective's value.

``excess`` is the divergence of a token in units of its threshold, ``sign(A) D / delta``: positive where the
policy gradient pushes pi further away from mu (diverging), negative where it brings pi back (converging),
above 1 where a diverging token has left the trust region.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drpo_verl.losses.geometry import TokenRatio, where_above


@dataclass(frozen=True)
class Reach:
    """How far each token has gone; each field ``[B, T]`` fp32.

    Attributes:
        excess: sign(A) D / delta; what w is computed from.
        gate: the same by the gate's distance and threshold, where an enforcement has one; else ``excess``.
        penalty: 2 sign(A) P / delta, where the geometry has a penalty.
    """

    excess: Tensor
    gate: Tensor
    penalty: Tensor | None


@dataclass(frozen=True)
class Enforcement:
    """A weight and the objective that it is the gradient weight of.

    Attributes:
        weight: reach -> w ``[B, T]``.
        value: (tokens, reach, w) -> the objective per unit of advantage ``[B, T]``, whose derivative with
            respect to log pi is ``r w``.
        needs_threshold: whether delta means anything to it.
        attenuates: whether w falls with the divergence, below 0 where a token is to be brought back; otherwise it is
            1 or 0.
        gated: whether it attenuates only tokens outside a region of its own (``region_delta``).
        detached: whether the ratio is no function of pi in the objective, so that clamping it takes no gradient away.
    """

    weight: Callable[[Reach], Tensor]
    value: Callable[[TokenRatio, Reach, Tensor], Tensor]
    needs_threshold: bool = True
    attenuates: bool = False
    gated: bool = False
    detached: bool = False


def _held_constant(tokens: TokenRatio, reach: Reach, weight: Tensor) -> Tensor:
    return tokens.ratio * weight


def _one(reach: Reach) -> Tensor:
    return torch.ones_like(reach.excess)


def _ratio(tokens: TokenRatio, reach: Reach, weight: Tensor) -> Tensor:
    return tokens.ratio.clone()


def _ratio_times_log_policy(tokens: TokenRatio, reach: Reach, weight: Tensor) -> Tensor:
    return tokens.ratio * tokens.log_pi


NONE = Enforcement(_one, _ratio, needs_threshold=False)
"""w = 1: the importance-sampled policy gradient, whatever the divergence."""

DETACHED = Enforcement(_one, _ratio_times_log_policy, needs_threshold=False, detached=True)
"""w = 1 with the ratio as a detached coefficient of log pi (CISPO): the gradient of ``NONE``, and another value."""


def _mask_weight(reach: Reach) -> Tensor:
    return torch.le(reach.gate, 1.0, out=torch.empty_like(reach.gate))  # 0 or 1, and no bool tensor in between


HARD_MASK = Enforcement(_mask_weight, _held_constant)
"""w = 0 for a diverging token outside the region, 1 elsewhere (PPO; DPPO, section 4)."""


def _quadratic_weight(reach: Reach) -> Tensor:
    return 1.0 - reach.excess


def _penalised(tokens: TokenRatio, reach: Reach, weight: Tensor) -> Tensor:
    # r A - |A| P / delta, divided by A.
    if reach.penalty is None:
        return tokens.ratio * weight
    return torch.sub(tokens.ratio, reach.penalty, alpha=0.5, out=reach.penalty)  # which nothing else needs


QUADRATIC = Enforcement(_quadratic_weight, _penalised, attenuates=True)
"""w = 1 - excess: attenuates a diverging token, corrects it beyond the boundary, strengthens a converging one:
the advantage-weighted quadratic regulariser of DRPO (section 3) and SPO."""


def _gated_weight(reach: Reach) -> Tensor:
    return 1.0 - where_above(reach.excess, reach.gate, 1.0)


def _gated_value(tokens: TokenRatio, reach: Reach, weight: Tensor) -> Tensor:
    assert reach.penalty is not None  # every gated row has a geometry with a penalty
    return torch.sub(tokens.ratio, where_above(reach.penalty, reach.gate, 1.0), alpha=0.5)


GATED_QUADRATIC = Enforcement(_gated_weight, _gated_value, attenuates=True, gated=True)
"""``QUADRATIC`` for the tokens that ``HARD_MASK`` would mask by the gate's distance, 1 elsewhere (Mask-DRPO)."""

"""Enforcements: what a token's distance does to its gradient weight w, and to the objective's value.

Distances come normalised, in units of the threshold, ``D / delta``: positive where the policy gradient pushes pi
further away from mu (diverging), negative where it brings pi back (converging), above 1 where a diverging token has
left the trust region.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from drpo_verl.losses.geometry import TokenRatio, indicator


@dataclass(frozen=True)
class Penalty:
    """P sign(A) / delta, which an objective takes away from the ratio: a number times two tensors ``[B, T]`` fp32."""

    number: float
    first: Tensor
    second: Tensor

    def taken_from(self, ratio: Tensor) -> Tensor:
        """The ratio less the penalty, ``[B, T]``, a new tensor."""
        return torch.addcmul(ratio, self.first, self.second, value=-self.number)


@dataclass(frozen=True)
class TrustRegionDistance:
    """How far each token is from the policy that its trust region lies around; each field ``[B, T]`` fp32.

    Attributes:
        normalized_divergence: D / delta, signed by whether the token diverges; what w is computed from.
        mask_criterion: the same by another distance and threshold, for an enforcement that chooses its tokens by one of
            its own; else ``normalized_divergence``. Above 1 a token is outside.
        penalty: where the geometry has one, and the enforcement asks for it.
    """

    normalized_divergence: Tensor
    mask_criterion: Tensor
    penalty: Penalty | None = None

    @cached_property
    def outside(self) -> Tensor:
        """1 where a token is outside the region, else 0, ``[B, T]``."""
        return indicator(self.mask_criterion, above=1.0)


@dataclass(frozen=True)
class Enforcement:
    """A weight and the objective that it is the gradient weight of.

    Attributes:
        weight: distance -> w ``[B, T]``.
        value: (tokens, min(r, C), distance, w) -> the objective per unit of advantage ``[B, T]``, a new tensor whose
            derivative with respect to log pi is ``min(r, C) w``; None where it is ``min(r, C) w`` with w held constant.
        needs_threshold: whether delta means anything to it.
        attenuates: whether w falls with the divergence, below 0 where a token is to be brought back; otherwise it is
            1 or 0.
        gated: whether it attenuates only tokens outside a region of its own (``region_delta``).
        formula: w as the documentation writes it, of the distance x in units of the threshold and the sense s.
        detached: whether the ratio is no function of pi in the objective, so that clamping it takes no gradient away.
    """

    weight: Callable[[TrustRegionDistance], Tensor]
    value: Callable[[TokenRatio, Tensor, TrustRegionDistance, Tensor], Tensor] | None = None
    needs_threshold: bool = True
    attenuates: bool = False
    gated: bool = False
    detached: bool = False
    formula: str = "w(x)"


def _one(distance: TrustRegionDistance) -> Tensor:
    return torch.ones_like(distance.normalized_divergence)


def _ratio_times_log_policy(tokens: TokenRatio, ratio: Tensor, distance: TrustRegionDistance, weight: Tensor) -> Tensor:
    return ratio * tokens.log_pi


NONE = Enforcement(_one, needs_threshold=False, formula="1")
"""w = 1: the importance-sampled policy gradient, whatever the divergence."""

DETACHED = Enforcement(
    _one, _ratio_times_log_policy, needs_threshold=False, detached=True, formula="1, r a detached coefficient"
)
"""w = 1 with the ratio as a detached coefficient of log pi (CISPO): the gradient of ``NONE``, and another value."""


def _mask(distance: TrustRegionDistance) -> Tensor:
    return 1.0 - distance.outside


HARD_MASK = Enforcement(_mask, formula="0 if s > 0 and x > 1, else 1")
"""w = 0 for a diverging token outside the region, 1 elsewhere (PPO; DPPO, section 4)."""


def _soft(distance: TrustRegionDistance) -> Tensor:
    return distance.mask_criterion.clamp(min=1.0).reciprocal()


SOFT_MASK = Enforcement(_soft, formula="min(1, 1/x) if s > 0, else 1")
"""w = min(1, delta / D) for a diverging token, 1 elsewhere: no cliff at the boundary, and never a correction (CPPO,
arXiv 2606.10968, appendix C)."""


def _quadratic(distance: TrustRegionDistance) -> Tensor:
    return 1.0 - distance.normalized_divergence


def _penalised_ratio(tokens: TokenRatio, ratio: Tensor, distance: TrustRegionDistance, weight: Tensor) -> Tensor:
    if distance.penalty is None:
        return ratio * weight  # w held constant
    return distance.penalty.taken_from(ratio)


QUADRATIC = Enforcement(_quadratic, _penalised_ratio, attenuates=True, formula="1 − s x")
"""w = 1 - D / delta: attenuates a diverging token, corrects it beyond the boundary, strengthens a converging one:
the advantage-weighted quadratic regulariser of DRPO (section 3) and SPO."""


def _gated_quadratic(distance: TrustRegionDistance) -> Tensor:
    return torch.where(distance.mask_criterion > 1.0, 1.0 - distance.normalized_divergence, 1.0)


def _penalised_ratio_outside(
    tokens: TokenRatio, ratio: Tensor, distance: TrustRegionDistance, weight: Tensor
) -> Tensor:
    if distance.penalty is None:
        return ratio * weight
    return torch.where(distance.mask_criterion > 1.0, distance.penalty.taken_from(ratio), ratio)


GATED_QUADRATIC = Enforcement(
    _gated_quadratic,
    _penalised_ratio_outside,
    attenuates=True,
    gated=True,
    formula="1 − x if s > 0 and D > `region_delta`, else 1",
)
"""``QUADRATIC`` for the tokens that ``HARD_MASK`` would mask by the region's own distance, 1 elsewhere (Mask-DRPO)."""

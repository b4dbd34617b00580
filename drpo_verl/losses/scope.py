"""Scopes: of which tokens the distance counts when one of them is restrained.

A token's own distance is the usual one. A *prefix* adds up the distances of the response so far, a *sequence* has one
distance for all of its tokens. Both need whole responses, one in each row, and all of them on one rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrefixBudget:
    """How much a response may have moved up to a token (CPPO, arXiv 2606.10968).

    Attributes:
        w_min: the position weight of the last token; that of the first is 1. In (0, 1].
        delta_b: the budget of a token in the weighted mean over the prefix, in the geometry's unit; > 0.
        quantile: the share of a response's tokens whose distance the budget is to cover, but at most ``2 delta_b``;
            None where ``delta_b`` is the budget of every response.
    """

    w_min: float
    delta_b: float
    quantile: float | None = None


@dataclass(frozen=True)
class Step:
    """One micro-batch, as a scope sees it; each tensor ``[B, T]`` fp32.

    Attributes:
        distance: D, 0 at padding.
        sense: s, which tokens diverge (see ``drpo_verl.losses.direction``); 0 at padding.
        threshold: delta.
        is_token: 1 for response tokens, 0 at padding and between them.
        strengthens: whether the weight of a converging token depends on how far it is.
        budget: of a prefix, for a scope that needs one.
    """

    distance: Tensor
    sense: Tensor
    threshold: Tensor | float
    is_token: Tensor
    strengthens: bool
    budget: PrefixBudget | None = None

    def signed(self, x: Tensor, own: Tensor) -> Tensor:
        """x where a token diverges, and its own distance, below 0, where it converges and this matters."""
        if not self.strengthens:
            return x * self.sense
        return x * self.sense.clamp(min=0.0) + own * self.sense.clamp(max=0.0)


@dataclass(frozen=True)
class Scope:
    """What is compared with the boundary in place of a token's own D / delta.

    Attributes:
        normalized: a micro-batch -> x s ``[B, T]``: x of all tokens in the scope where a token diverges, and the
            token's own distance where it converges, so that no other token's distance amplifies it.
        name: as the documentation writes it.
        needs_budget: whether it takes a ``PrefixBudget``.
    """

    normalized: Callable[[Step], Tensor]
    name: str
    needs_budget: bool = False


def lengths(is_token: Tensor) -> Tensor:
    """The number of response tokens, ``[B, 1]``, at least 1."""
    return is_token.sum(-1, keepdim=True).clamp(min=1.0)


def _mean(step: Step) -> Tensor:
    of_response = step.distance.sum(-1, keepdim=True) / lengths(step.is_token)
    return step.signed(of_response / step.threshold, step.distance / step.threshold)


SEQUENCE_MEAN = Scope(_mean, "sequence: mean D")
"""x = the mean of D over the response, over delta (TRM-Avg, arXiv 2512.23075)."""


def _largest(step: Step) -> Tensor:
    return step.signed(step.distance.amax(-1, keepdim=True) / step.threshold, step.distance / step.threshold)


SEQUENCE_MAX = Scope(_largest, "sequence: largest D")
"""x = the largest D of the response, over delta (TRM-Max, arXiv 2512.23075)."""


def _prefix(step: Step) -> Tensor:
    assert step.budget is not None
    count = step.is_token.cumsum(-1)
    rise = (count[:, -1:] - 1.0).clamp_(min=1.0).reciprocal_().mul_(step.budget.w_min - 1.0)  # of omega, <= 0
    # From here on results are written into tensors that are no longer needed: a new one costs as much as a product.
    before = count.sub_(step.is_token)  # response tokens before each one
    omega = (before * rise).add_(1.0)
    weighted = omega * step.distance
    spent = weighted.cumsum(-1)
    # The weights before a token are an arithmetic series from 1 to omega - rise, whose mean is that of these two.
    budget = omega.add_(1.0 - rise).mul_(before).mul_(0.5 * _budget(step, step.budget))
    own, of_prefix = weighted.div_(step.threshold), spent.div_(budget.add_(step.threshold))
    return step.signed(torch.maximum(own, of_prefix, out=of_prefix), own)


PREFIX = Scope(_prefix, "prefix", needs_budget=True)
"""x = max(omega D / delta, S / (delta + delta_b W)), with position weights omega that fall from 1 to ``w_min`` over the
response, S the weighted distances up to the token, itself included, and W the weights before it (CPPO, equations 8 to
10). Every token adds to S, whatever becomes of it."""


def _budget(step: Step, budget: PrefixBudget) -> Tensor | float:
    """delta_b, ``[B, 1]`` where it depends on the response."""
    if budget.quantile is None:
        return budget.delta_b
    reached = quantile(step.distance, step.is_token, budget.quantile)
    return reached.clamp(min=budget.delta_b, max=2.0 * budget.delta_b)


def quantile(values: Tensor, is_token: Tensor, share: float) -> Tensor:
    """The quantile of each row's tokens, ``[B, 1]``, interpolated linearly; 0 for a row without any.

    Args:
        values: ``[B, T]``, >= 0.
        is_token: 1 for what counts, else 0.
        share: in (0, 1).
    """
    # Counted from the largest value down: for a share close to 1 only few have to be sorted, and padding comes last.
    most = math.ceil((1.0 - share) * (values.shape[-1] - 1)) + 1
    largest = (values * is_token).topk(min(most, values.shape[-1])).values
    place = (1.0 - share) * (lengths(is_token) - 1.0)
    last = largest.shape[-1] - 1  # which a rank rounded in fp32 may be beyond
    above, below = (largest.gather(-1, rank.long().clamp(max=last)) for rank in (place.floor(), place.ceil()))
    return torch.lerp(above, below, place.frac())

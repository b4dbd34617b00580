"""Divergences between mu and pi over a partition of the vocabulary: some tokens one by one, all others as one.

Merging tokens never increases a divergence (data processing): the partition's is a lower bound of the full
vocabulary's, and the finer the partition the closer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(log mu, log pi, listed, mu's rest) -> D, ``[...]``. The first three are ``[..., K]``, with ``listed`` 0 for an entry
that is not one; the rest, ``[...]``, is mu's probability of all other tokens, None to take it from the listed ones."""

MIN_REST = 1e-12
"""Floor of the rest's probability, as in DPPO: a difference of fp32 sums can be zero or below."""


def _rest(probabilities: Tensor, given: Tensor | None = None) -> Tensor:
    return (1.0 - probabilities.sum(-1) if given is None else given).clamp(min=MIN_REST)


def total_variation(log_mu: Tensor, log_pi: Tensor, listed: Tensor, rest: Tensor | None = None) -> Tensor:
    """Half the sum of abs(mu - pi) over the listed tokens and the rest; in [0, 1]."""
    mu, pi = log_mu.exp() * listed, log_pi.exp() * listed
    return ((mu - pi).abs().sum(-1) + (_rest(mu, rest) - _rest(pi)).abs()).mul_(0.5)


def kullback_leibler(log_mu: Tensor, log_pi: Tensor, listed: Tensor, rest: Tensor | None = None) -> Tensor:
    """KL(mu || pi) in nats; at least 0."""
    mu, pi = log_mu.exp() * listed, log_pi.exp() * listed
    rest_mu, rest_pi = _rest(mu, rest), _rest(pi)
    each = torch.where(listed > 0, mu * (log_mu - log_pi), torch.zeros_like(mu)).sum(-1)
    return (each + rest_mu * (rest_mu / rest_pi).log()).clamp_(min=0.0)

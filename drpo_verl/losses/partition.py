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

LARGEST_DIVERGENCE = 1e30
"""In place of an infinite KL divergence (pi = 0 where mu is not): finite, so that it is 0 times an advantage of 0."""

_SMALLEST_REST = 1e-12
"""Floor of the rest's probability, as in DPPO: a difference of fp32 sums can be zero or below."""


def _rest(probabilities: Tensor, given: Tensor | None = None) -> Tensor:
    return (1.0 - probabilities.sum(-1) if given is None else given).clamp(min=_SMALLEST_REST)


def total_variation(log_mu: Tensor, log_pi: Tensor, listed: Tensor, rest: Tensor | None = None) -> Tensor:
    """Half the sum of abs(mu - pi) over the listed tokens and the rest; in [0, 1]."""
    mu, pi = log_mu.exp() * listed, log_pi.exp() * listed
    return 0.5 * ((mu - pi).abs().sum(-1) + (_rest(mu, rest) - _rest(pi)).abs())


def kullback_leibler(log_mu: Tensor, log_pi: Tensor, listed: Tensor, rest: Tensor | None = None) -> Tensor:
    """KL(mu || pi) in nats; from 0 to ``LARGEST_DIVERGENCE``. A token that mu excludes adds nothing, whatever pi is."""
    mu, pi = log_mu.exp() * listed, log_pi.exp() * listed
    rest_mu, rest_pi = _rest(mu, rest), _rest(pi)
    listed_terms = torch.where(mu > 0, mu * (log_mu - log_pi), 0.0).sum(-1)
    return (listed_terms + rest_mu * (rest_mu / rest_pi).log()).clamp(0.0, LARGEST_DIVERGENCE)

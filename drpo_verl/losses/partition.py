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

Derivative = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]
"""The arguments of a ``Divergence``, the sampled token first, and the size of the vocabulary -> the derivative of the
divergence along that token's policy gradient, ``[...]``."""

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


TAILS = ("aggregated", "uniform")
"""What is assumed of the tokens in the rest: that they are one token, or that they share its probability evenly."""


def kullback_leibler_derivative(
    log_mu: Tensor, log_pi: Tensor, listed: Tensor, rest: Tensor | None, vocabulary: int, tail: str
) -> Tensor:
    """The derivative of KL(mu || pi) along the policy gradient of the sampled token, for A r = 1.

    A step on token k moves the logits along ``e_k - pi``, and ``dKL / dz_i = pi_i - mu_i``: the sampled token's own
    difference, and what the step does to all others (arXiv 2607.10848).

    Args:
        log_mu: ``[..., K]``, the sampled token first.
        log_pi: ``[..., K]``.
        listed: 0 for an entry that is not one, else 1; ``[..., K]``.
        rest: mu's probability of all other tokens, ``[...]``; None to take it from the listed ones.
        vocabulary: how many tokens there are.
        tail: one of ``TAILS``.
    """
    mu, pi = log_mu.exp() * listed, log_pi.exp() * listed
    rest_mu = (1.0 - mu.sum(-1) if rest is None else rest).clamp(min=0.0)
    rest_pi = (1.0 - pi.sum(-1)).clamp(min=0.0)
    others = 1.0 if tail == "aggregated" else (vocabulary - listed.sum(-1)).clamp(min=1.0)
    return pi[..., 0] - mu[..., 0] + (pi * (mu - pi)).sum(-1) + rest_pi * (rest_mu - rest_pi) / others

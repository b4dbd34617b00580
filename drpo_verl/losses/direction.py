"""Directions: which moves of a token lead away from the behaviour policy, and which lead back.

A token *diverges* where its update leads pi further away from mu, and *converges* where it leads back. Enforcements
restrain the former.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from drpo_verl.losses.geometry import TokenRatio


@dataclass(frozen=True)
class Direction:
    """A rule for the sense s of each token: 1 where it diverges, -1 where it converges, 0 where it does neither.

    Attributes:
        sense: (tokens, D signed by the direction of pi's move, sign(A), 1 or 0 for what is a token) -> s, 0 at padding;
            all ``[B, T]``.
        signed: (tokens, D, sign(A)) -> abs(D) s.
        name: s as the documentation writes it.
        needs_derivative: whether it takes the derivative of the divergence over a partition (see ``TokenRatio``).
    """

    sense: Callable[[TokenRatio, Tensor, Tensor, Tensor], Tensor]
    signed: Callable[[TokenRatio, Tensor, Tensor], Tensor]
    name: str
    needs_derivative: bool = False


def _ratio_sense(tokens: TokenRatio, distance: Tensor, advantage_sign: Tensor, is_token: Tensor) -> Tensor:
    return distance.sign().mul_(advantage_sign)


def _signed_by_ratio(tokens: TokenRatio, distance: Tensor, advantage_sign: Tensor) -> Tensor:
    return distance * advantage_sign


BY_RATIO = Direction(_ratio_sense, _signed_by_ratio, "sign(A (r − 1))")
"""s = sign(A (r - 1)): the policy gradient pushes pi further to the side where it already is (PPO; DPPO, section 4;
DRPO, section 3). A token without an advantage does neither."""


def _always(tokens: TokenRatio, distance: Tensor, advantage_sign: Tensor, is_token: Tensor) -> Tensor:
    return is_token


def _magnitude(tokens: TokenRatio, distance: Tensor, advantage_sign: Tensor) -> Tensor:
    return distance.abs()


NONE = Direction(_always, _magnitude, "1")
"""s = 1: two-sided, a token is restrained wherever its update leads (IPO, IcePop, KPop, rejection sampling)."""


def _predicted_sense(tokens: TokenRatio, distance: Tensor, advantage_sign: Tensor, is_token: Tensor) -> Tensor:
    return _sign_of_derivative(tokens) * advantage_sign


def _sign_of_derivative(tokens: TokenRatio) -> Tensor:
    if tokens.partition_derivative is None:
        raise ValueError("a predictive direction needs the derivative of the divergence over its partition")
    return tokens.partition_derivative.sign()


def _signed_by_prediction(tokens: TokenRatio, distance: Tensor, advantage_sign: Tensor) -> Tensor:
    # Not from the distance, which is signed by the sampled token's own move, and so 0 where that has not moved.
    assert tokens.partition_divergence is not None
    return tokens.partition_divergence * _sign_of_derivative(tokens) * advantage_sign


PREDICTIVE = Direction(_predicted_sense, _signed_by_prediction, "sign(A Ḋ)", needs_derivative=True)
"""s = sign(A dD): whether the divergence itself grows with the first step along the token's gradient, which moves all
tokens of the vocabulary (Predictive Divergence Masks, arXiv 2607.10848). On a partition of two it is ``BY_RATIO``."""

"""Directions: which moves of a token lead away from the behaviour policy, and which lead back.

A token *diverges* where its update leads pi further away from mu, and *converges* where it leads back. Enforcements
restrain the former.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Direction = Callable[[Tensor, Tensor], Tensor]
"""(D signed by the direction of pi's move, sign(A)) -> the factor in {-1, 0, 1} that makes D positive where the token
diverges and negative where it converges; all ``[B, T]``."""


def by_ratio(distance: Tensor, advantage_sign: Tensor) -> Tensor:
    """Diverging where A (r - 1) > 0: the policy gradient pushes pi further to the side where it already is.

    The direction of PPO, DPPO (section 4) and DRPO (section 3). A token without an advantage does neither.
    """
    return advantage_sign

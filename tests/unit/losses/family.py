"""The choices of an objective in float64, token by token in plain Python: the truth for every pair of them.

Written from the papers' formulas (CPPO's equations 8 to 10 with its cap c_t, not the normalised form of the code).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drpo_verl.losses import Objective, TrustRegion, table
from drpo_verl.losses.direction import BY_RATIO, NONE, PREDICTIVE
from drpo_verl.losses.enforcement import HARD_MASK, QUADRATIC, SOFT_MASK
from drpo_verl.losses.geometry import BINARY_KL, PROBABILITY, RATIO, SYMMETRISED_BINARY_KL, TOP_K_KL, TOP_K_TV
from drpo_verl.losses.scope import PREFIX, SEQUENCE_MAX, SEQUENCE_MEAN


@dataclass(frozen=True)
class Token:
    """A response token."""

    mu: float
    pi: float
    advantage: float
    partition: float = 0.0
    derivative: float = 0.0


def bernoulli_kl(p: float, q: float) -> float:
    return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)


def distance(row: Objective, token: Token) -> float:
    """D, unsigned."""
    if row.geometry is PROBABILITY:
        return abs(token.pi - token.mu)
    if row.geometry is RATIO:
        return abs(token.pi / token.mu - 1)
    if row.geometry is BINARY_KL:
        return bernoulli_kl(token.mu, token.pi)
    if row.geometry is SYMMETRISED_BINARY_KL:
        return max(bernoulli_kl(token.mu, token.pi), bernoulli_kl(token.pi, token.mu))
    assert row.geometry in (TOP_K_KL, TOP_K_TV)
    return token.partition


def sense(row: Objective, token: Token) -> int:
    """s: 1 diverging, -1 converging."""
    if row.direction is NONE:
        return 1
    moved = token.pi - token.mu if row.direction is BY_RATIO else token.derivative
    assert row.direction in (BY_RATIO, PREDICTIVE)
    return int(math.copysign(1, token.advantage * moved)) if token.advantage * moved else 0


def percentile(values: Sequence[float], share: float) -> float:
    """As NumPy's, interpolated linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def budgets(region: TrustRegion, distances: Sequence[float]) -> list[tuple[float, float, float]]:
    """omega_t, c_t and S_t over delta + delta_b W_{t-1}, of each token of a response."""
    budget = region.prefix_budget
    assert budget is not None
    delta_b, length = budget.delta_b, len(distances)
    if budget.quantile is not None:
        delta_b = min(max(percentile(distances, budget.quantile), delta_b), 2 * delta_b)
    spent = weights = 0.0
    found = []
    for t, each in enumerate(distances):
        omega = 1.0 if length == 1 else 1 - (1 - budget.w_min) * t / (length - 1)
        allowed = region.delta_high + delta_b * weights
        found.append((omega, min(region.delta_high, allowed - spent), (spent + omega * each) / allowed))
        spent, weights = spent + omega * each, weights + omega
    return found


def weights(row: Objective, region: TrustRegion, response: Sequence[Token]) -> list[float]:
    """w of each token of one response."""
    distances = [distance(row, token) for token in response]
    result = []
    for t, token in enumerate(response):
        delta = region.delta_high if token.pi > token.mu else region.delta_low
        s, own, is_outside = sense(row, token), distances[t] / delta, distances[t] > delta
        x = own
        if row.scope is PREFIX:
            omega, cap, of_prefix = budgets(region, distances)[t]
            own, is_outside = omega * own, omega * distances[t] > cap  # M_t = 0 if Z_t > c_t
            x = max(own, of_prefix)
        elif row.scope in (SEQUENCE_MAX, SEQUENCE_MEAN):
            whole = max(distances) if row.scope is SEQUENCE_MAX else sum(distances) / len(distances)
            x, is_outside = whole / delta, whole > delta
        else:
            assert row.scope is None
        if row.enforcement is HARD_MASK:
            result.append(0.0 if s > 0 and is_outside else 1.0)
        elif row.enforcement is SOFT_MASK:
            result.append(min(1.0, 1 / x) if s > 0 and x > 0 else 1.0)
        elif row.enforcement is QUADRATIC:
            result.append(1 - x if s > 0 else 1 - s * own)
        else:
            result.append(1.0)
    return result


def allowed(row: Objective) -> bool:
    """Whether the table would take it."""
    return not list(table.contradictions(row))

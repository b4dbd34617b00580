"""Tokens of a rollout in low precision: errors of the log-odds, all over the range of mu."""

from __future__ import annotations

import numpy as np

from drpo_verl.probe.mismatch import Tokens


def tokens(count: int, error: float = 0.1, seed: int = 0) -> Tokens:
    """``count`` tokens whose log-odds are off by a normal error of that standard deviation."""
    generator = np.random.default_rng(seed)
    odds = generator.uniform(-12, 12, count)
    return Tokens(_log_probability(odds), _log_probability(odds + error * generator.standard_normal(count)))


def _log_probability(odds: np.ndarray) -> np.ndarray:
    # As the engines hand it on.
    return (-np.logaddexp(0, -odds)).astype(np.float32).astype(np.float64)

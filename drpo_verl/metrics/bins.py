"""The bins of mu, shared by what logs, shows and probes by them; without torch, so that the tools start at once."""

from __future__ import annotations

PROBABILITY_BINS: dict[str, float] = {
    "le_1e-4": 1e-4,
    "1e-4_1e-3": 1e-3,
    "1e-3_1e-2": 1e-2,
    "1e-2_0.1": 0.1,
    "0.1_0.5": 0.5,
    "0.5_0.9": 0.9,
    "0.9_0.99": 0.99,
    "gt_0.99": 1.0,
}
"""Bins of mu by name, with their upper edges (which belong to them)."""

"""Metric names: ours stay as they are where verl puts ``actor/`` before everything that an actor returns."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

NAMESPACES = ("trust_region/", "mismatch/", "mismatch_by_prob/", "inference_mismatch/", "policy_drift/")

Rename = Callable[[dict[str, Any], str], dict[str, Any]]


def keep_namespaces(rename_dict: Rename) -> Rename:
    """Wrap verl's ``rename_dict``: metrics in ``NAMESPACES`` are not prefixed."""

    @wraps(rename_dict)
    def renamed(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        ours = {name: value for name, value in data.items() if name.startswith(NAMESPACES)}
        return {**rename_dict({name: value for name, value in data.items() if name not in ours}, prefix), **ours}

    return renamed

"""On the driver, our metrics stay what the actor made them.

verl puts ``actor/`` before everything that an actor returns, and averages the updates between two weight syncs of its
asynchronous trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from drpo_verl.metrics.names import NAMESPACES, OF_VERL

Rename = Callable[[dict[str, Any], str], dict[str, Any]]
AggregationType = Callable[[Any, str], str]


def keep_namespaces(rename_dict: Rename) -> Rename:
    """Wrap verl's ``rename_dict``: the names of our metrics are not prefixed.

    Those in ``OF_VERL`` are ours where others of ours are beside them; verl's own loss for bypass mode logs such, too,
    which keep their prefix.
    """

    @wraps(rename_dict)
    def renamed(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        kept = NAMESPACES + OF_VERL if any(name.startswith(NAMESPACES) for name in data) else ()
        ours = {name: value for name, value in data.items() if name.startswith(kept)}
        return {**rename_dict({name: value for name, value in data.items() if name not in ours}, prefix), **ours}

    return renamed


def keep_the_last(aggregation_type: AggregationType) -> AggregationType:
    """Wrap verl's ``MetricsAggregator._get_aggregation_type``: of metrics in ``NAMESPACES``, the last update's count.

    They are over all tokens since the weight sync, so that the last update's are the step's. An average of quantiles,
    or of shares over different numbers of tokens, would be neither. Those in ``OF_VERL`` are over the tokens of the
    first mini-batch, the same after each update, and so is their average.
    """

    @wraps(aggregation_type)
    def kept(self: Any, metric_name: str) -> str:
        return "last" if metric_name.startswith(NAMESPACES) else aggregation_type(self, metric_name)

    return kept

"""The weights that verl keeps to recompute pi_old from them, as a copy wherever the parameters are.

With ``separate_async``, several updates between two weight syncs and ``bypass_mode=False``, verl keeps the parameters
of the last sync by ``Tensor.cpu()``. That copies from a GPU, and returns the very tensor of a parameter that lies on
the host: on a CPU, or by FSDP2's CPU offload policy. What is kept then follows every update, pi_old is pi, and every
distance from it is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def copying(save: Callable[[Any], tuple[dict[str, Any], Any]]) -> Callable[[Any], tuple[dict[str, Any], Any]]:
    """Wrap ``fsdp2_sharded_save_to_cpu``: model -> (name -> (shard on the host, its layout), layout of the model)."""

    @wraps(save)
    def saving(model: Any) -> tuple[dict[str, Any], Any]:
        shards, layout = save(model)
        for name, parameter in model.named_parameters():
            shard, of = shards[name]
            local = getattr(parameter, "_local_tensor", parameter)  # of a DTensor, as verl takes it
            if shard.data_ptr() == local.data_ptr():
                shards[name] = (shard.clone(), of)
        return shards, layout

    return saving

"""Where verl's Megatron engine puts the logits of a micro-batch: imported only where that engine runs.

It pads each sequence to what tensor and context parallelism (and FP8's blocks) divide, gives each context-parallel rank
two pieces of it, and splits the vocabulary over the tensor-parallel ranks. All of it is done by the functions that the
engine itself calls, with the same arguments (verl's ``gptmodel_forward_model_engine``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from tensordict import TensorDict
from verl.models.mcore.util import preprocess_bshd_engine, preprocess_thd_engine
from verl.utils import tensordict_utils
from verl.utils.megatron_utils import unwrap_model

from drpo_verl.adapters.logits import Layout, Shard
from drpo_verl.seams import expect_parameters

_PADDED_FOR_FP8 = ("e4m3", "hybrid")
"""The kinds of FP8 for which verl pads; its own distillation forgets to."""

_UTIL = "verl.models.mcore.util"
expect_parameters(preprocess_thd_engine, f"{_UTIL}.preprocess_thd_engine", "use_fp8_padding", "cp_layout")
expect_parameters(preprocess_bshd_engine, f"{_UTIL}.preprocess_bshd_engine", "use_fp8_padding", "forced_max_seqlen")


def layout(engine: Any, data: TensorDict, data_format: str) -> Layout:
    """Of the logits with which the engine calls the loss.

    Only ranks of the last pipeline stage have any, and the tensor-parallel ranks among them are called with the same
    rows: they can reduce over their group.

    Args:
        engine: verl's ``MegatronEngine``, initialised.
        data: the micro-batch.
        data_format: ``thd`` for packed sequences, ``bshd`` for padded ones.
    """
    model = unwrap_model(engine.module[0])
    padding = {"use_fp8_padding": model.config.fp8 in _PADDED_FOR_FP8}
    if data_format == "thd":
        pack = partial(preprocess_thd_engine, cp_layout=engine._get_context_parallel_layout(model), **padding)
    else:
        longest = tensordict_utils.get_non_tensor_data(data, key="forced_max_seqlen", default=None)
        pack = partial(preprocess_bshd_engine, forced_max_seqlen=longest, **padding)
    group = parallel_state.get_tensor_model_parallel_group()
    return Layout(
        rows=lambda tokens: pack(tokens)[0],
        shard=Shard(
            index=parallel_state.get_tensor_model_parallel_rank(),
            all_reduce=lambda tensor, operation: torch.distributed.all_reduce(tensor, operation, group=group),
            count=parallel_state.get_tensor_model_parallel_world_size(),
        ),
    )

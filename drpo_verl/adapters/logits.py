"""How an engine's logits lie: which row is which token's, and which part of the vocabulary is here.

FSDP's are the plain case, a row for each token and all of the vocabulary; ``megatron.py`` has Megatron's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ReduceOp

AllReduce = Callable[[Tensor, ReduceOp.RedOpType], object]
"""Reduces a tensor in place over the ranks that hold the other shards."""

_CHUNK_ELEMENTS = 2**24
"""Logits that are exponentiated in fp32 at once: 64 MB."""


def _alone(tensor: Tensor, operation: ReduceOp.RedOpType) -> None:
    """There is nothing to reduce over."""


@dataclass(frozen=True)
class Shard:
    """One of equal and contiguous parts of the vocabulary.

    Args:
        index: which one.
        all_reduce: over the ranks that hold all of them.
        count: how many parts there are.
    """

    index: int = 0
    all_reduce: AllReduce = _alone
    count: int = 1


WHOLE = Shard()
"""All of the vocabulary."""


def _one_after_the_other(tokens: Tensor) -> Tensor:
    return tokens.values().unsqueeze(0)


@dataclass(frozen=True)
class Layout:
    """Of the logits of a micro-batch, ``[R, S, V / shards]``.

    Args:
        rows: brings a value for each token, nested ``[B, j]``, to ``[R, S]``, with zeros where the engine pads.
        shard: the part of the vocabulary that this rank has.
    """

    rows: Callable[[Tensor], Tensor] = _one_after_the_other
    shard: Shard = WHOLE

    def positions(self, tokens: int, offsets: Tensor) -> Tensor:
        """For each row of the logits, the number of its token in the micro-batch.

        Args:
            tokens: how many there are.
            offsets: where those of each sample begin, and the last end, ``[B + 1]``.

        Returns:
            ``[R, S]``, int64; -1 where the engine pads.
        """
        numbers = torch.arange(1, tokens + 1, device=offsets.device)
        return self.rows(torch.nested.nested_tensor_from_jagged(numbers, offsets=offsets)) - 1


PLAIN = Layout()
"""All tokens of the micro-batch one after the other, and all of the vocabulary."""


def log_probabilities(logits: Tensor, ids: Tensor, shard: Shard = WHOLE) -> Tensor:
    """The logits' log-probabilities at some ids of each row, which one of the shards holds each.

    The normaliser is over every column, as in the log-probabilities of the sampled tokens that Megatron computes: those
    that pad the vocabulary too. It goes over the vocabulary in chunks of rows, so that nothing of the logits' size is
    made; two all-reduces, of one and of K + 1 numbers a row, make one result of all shards.

    Args:
        logits: ``[N, V / shards]``, this shard's columns.
        ids: ``[N, K]``, int64, in [0, V).
        shard: which of the columns these are.

    Returns:
        ``[N, K]``, fp32, the same on every rank.
    """
    width = logits.shape[1]
    row_max = logits.amax(dim=1, keepdim=True).float()
    shard.all_reduce(row_max, ReduceOp.MAX)
    rows = max(1, _CHUNK_ELEMENTS // width)
    chunks = zip(logits.split(rows), row_max.split(rows), strict=True)
    exponential_sums = [(chunk - chunk_max).exp_().sum(dim=1, keepdim=True) for chunk, chunk_max in chunks]  # fp32
    columns = ids - shard.index * width
    is_here = (columns >= 0) & (columns < width)
    scores = torch.where(is_here, logits.gather(1, columns.clamp(0, width - 1)).float() - row_max, 0.0)
    summed = torch.cat([torch.cat(exponential_sums), scores], dim=1)
    shard.all_reduce(summed, ReduceOp.SUM)
    return summed[:, 1:] - summed[:, :1].log()

"""Log-probabilities of logits whose vocabulary is split: over real gloo groups, whose ranks are threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed import AllreduceOptions, HashStore, ProcessGroupGloo, ReduceOp

from drpo_verl.adapters import logits as logits_of
from drpo_verl.adapters.logits import PLAIN, AllReduce, Shard, log_probabilities


@cache
def _ranks(shards: int) -> tuple[ThreadPoolExecutor, list[AllReduce]]:
    store, pool = HashStore(), ThreadPoolExecutor(shards)
    options = ProcessGroupGloo._Options()
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    groups = list(pool.map(lambda rank: ProcessGroupGloo(store, rank, shards, options), range(shards)))

    def reducing(group: ProcessGroupGloo) -> AllReduce:
        def all_reduce(tensor: Tensor, operation: ReduceOp.RedOpType) -> None:
            how = AllreduceOptions()
            how.reduceOp = ReduceOp(operation)
            group.allreduce([tensor], how).wait()

        return all_reduce

    return pool, [reducing(group) for group in groups]


def _over(shards: int, logits: Tensor, each: Callable[[Tensor, Shard], Tensor]) -> list[Tensor]:
    pool, reducers = _ranks(shards)
    parts = logits.chunk(shards, dim=1)
    return list(
        pool.map(lambda rank: each(parts[rank].contiguous(), Shard(rank, reducers[rank])), range(shards), timeout=60)
    )


@settings(max_examples=60)
@given(
    shards=st.sampled_from([1, 2, 3, 4]),
    width=st.integers(1, 7),
    rows=st.integers(1, 9),
    entries=st.integers(1, 6),
    chunk=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scale=st.sampled_from([0.1, 3.0, 60.0]),
    shift=st.sampled_from([0.0, -300.0, 300.0]),
    seed=st.integers(0, 2**16),
)
def test_shards_together_have_the_log_probabilities_of_the_whole(
    shards: int,
    width: int,
    rows: int,
    entries: int,
    chunk: int,
    dtype: torch.dtype,
    scale: float,
    shift: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(rows, shards * width, generator=generator) + shift).to(dtype)
    ids = torch.randint(shards * width, (rows, entries), generator=generator)
    before = logits.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits_of, "_CHUNK_ELEMENTS", chunk)
        whole = log_probabilities(logits, ids)
        found = _over(shards, logits, lambda part, shard: log_probabilities(part, ids, shard))
    assert torch.equal(logits, before), "the log-probabilities of the loss are computed from them afterwards"
    exact = logits.double().log_softmax(-1).gather(1, ids)
    torch.testing.assert_close(whole.double(), exact, rtol=1e-5, atol=1e-5)
    for rank in found:
        assert rank.dtype == torch.float32 and torch.equal(rank, found[0])
        torch.testing.assert_close(rank, whole, rtol=1e-5, atol=1e-5)


def test_a_shard_without_any_probability_is_no_trouble() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf, -torch.inf]])
    ids = torch.tensor([[0, 1, 2, 3]])
    for rank in _over(2, logits, lambda part, shard: log_probabilities(part, ids, shard)):
        torch.testing.assert_close(rank, logits.log_softmax(-1))


def test_plainly_tokens_are_where_they_are_in_the_micro_batch() -> None:
    assert PLAIN.positions(4, torch.tensor([0, 3, 4])).tolist() == [[0, 1, 2, 3]]

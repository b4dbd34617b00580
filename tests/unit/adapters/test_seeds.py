"""The seeds of samples, their order, and the seeds of processes, on verl's own batches."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta
from vllm import SamplingParams

from drpo_verl.adapters import seeds
from drpo_verl.adapters.seeds import FIELD, PromptSeeds, derive

ADDITION, SUBTRACTION = ([{"role": "user", "content": text}] for text in ("12+34", "56-7"))


def _config(seed: int | None) -> DictConfig:
    return OmegaConf.create({"actor_rollout_ref": {"rollout": {"custom": {"drpo_verl": {"seed": seed}}}}})


class _Owner:
    """What verl's manager, worker, client and ranks have of the configuration."""

    def __init__(self, seed: int | None) -> None:
        self.config = _config(seed)


def test_a_derived_seed_is_the_same_everywhere_and_one_that_vllm_takes() -> None:
    assert derive(3, "training", 7) == int(hashlib.blake2b(b'[3, "training", 7]', digest_size=8).hexdigest(), 16) // 2
    many = {derive(3, step, number) for step in range(100) for number in range(100)}
    assert len(many) == 10_000 and min(many) >= 0 and max(many) < 2**63
    assert derive(1, 23) != derive(12, 3) and derive("1") != derive(1)
    assert SamplingParams(seed=2**63 - 1).seed == 2**63 - 1
    torch.Generator().manual_seed(2**63 - 1)


def test_a_prompt_is_told_apart_by_seed_step_kind_text_and_how_often_it_came() -> None:
    prompts = [ADDITION, SUBTRACTION, ADDITION]
    first = PromptSeeds(3).of(prompts, step=1, validate=False)
    others = [
        PromptSeeds(4).of(prompts, step=1, validate=False),
        PromptSeeds(3).of(prompts, step=2, validate=False),
        PromptSeeds(3).of(prompts, step=1, validate=True),
    ]
    everything = [*first, *(seed for other in others for seed in other)]
    assert len(set(everything)) == len(everything) == 12
    assert PromptSeeds(3).of(prompts, step=1, validate=False) == first


def test_neither_other_prompts_nor_where_a_batch_is_cut_changes_a_prompts_seed() -> None:
    whole = PromptSeeds(3).of([ADDITION, SUBTRACTION, ADDITION], step=1, validate=True)
    in_parts = PromptSeeds(3)
    parts = [in_parts.of([each], step=1, validate=True) for each in (ADDITION, SUBTRACTION, ADDITION)]
    assert [seed for part in parts for seed in part] == whole
    assert PromptSeeds(3).of([SUBTRACTION, ADDITION], step=1, validate=True) == [whole[1], whole[0]]
    in_parts.of([ADDITION], step=1, validate=False)
    assert in_parts.of([ADDITION], step=1, validate=True) == whole[:1]  # a validation of its own


def test_a_prompt_with_an_image_has_the_same_seed_in_each_process() -> None:
    def picture() -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image", "image": object()}]}]  # whose repr has an address

    first, second = (PromptSeeds(3).of([picture(), picture()], step=1, validate=False) for _ in range(2))
    assert first == second and first[0] != first[1]


def _batch(uids: list[str]) -> Any:
    from verl.utils import tensordict_utils

    messages = np.empty(len(uids), dtype=object)
    messages[:] = [ADDITION, SUBTRACTION, ADDITION]
    batch = tensordict_utils.get_tensordict({"raw_prompt": messages, "uid": np.array(uids, dtype=object)})
    tensordict_utils.assign_non_tensor_data(batch, "global_steps", 5)
    return batch


def test_each_prompt_of_a_batch_gets_its_seed_and_a_run_without_seed_none() -> None:
    generate = seeds.give_seeds(lambda self, prompts: prompts)
    batch = _batch(["b", "a", "c"])
    chunks = generate(_Owner(3), batch).chunk(2)  # as verl deals them out to the workers
    sent = [int(seed) for chunk in chunks for seed in chunk[FIELD]]
    assert sent == PromptSeeds(3).of([ADDITION, SUBTRACTION, ADDITION], step=5, validate=False)
    assert FIELD not in batch
    assert FIELD not in generate(_Owner(None), batch)


def test_samples_of_a_prompt_and_turns_of_a_sample_have_seeds_of_their_own() -> None:
    received: list[dict[str, Any]] = []

    async def generate(self: Any, request_id: str, *, prompt_ids: Any, sampling_params: dict[str, Any]) -> None:
        received.append(sampling_params)

    async def run_agent_loop(self: Any, sampling_params: dict[str, Any], trajectory: Any, **fields: Any) -> None:
        assert FIELD not in fields
        for length in (4, 9):
            await seeds.seed_turns(generate)(
                self, "id", prompt_ids=list(range(length)), sampling_params=sampling_params
            )

    def sample(owner: _Owner, number: int, **fields: Any) -> list[Any]:
        received.clear()
        shared = {"temperature": 1.0}
        asyncio.run(seeds.seed_samples(run_agent_loop)(owner, shared, {}, session_id=number, **fields))
        assert shared == {"temperature": 1.0} and all(each["temperature"] == 1.0 for each in received)
        return [each.get("seed") for each in received]

    prompt_seed = torch.tensor(2**62 + 1)
    drawn = [seed for number in range(3) for seed in sample(_Owner(3), number, **{FIELD: prompt_seed})]
    assert len(set(drawn)) == 6
    assert sample(_Owner(3), 1, **{FIELD: prompt_seed}) == drawn[2:4]
    assert sample(_Owner(None), 1) == [None, None]


def test_samples_are_collected_in_the_order_of_their_prompts() -> None:
    generate = seeds.give_seeds(lambda self, prompts: None)
    finished = ["a_1_0", "c_0_0", "b_10_0", "b_2_1", "a_0_0", "b_2_0"]

    def materialize(self: Any, partition_id: str, selected_prompt_uids: list[str], snapshot: Any) -> KVBatchMeta:
        tags = [{"key": key} for key in finished]
        return KVBatchMeta(partition_id=partition_id, keys=list(finished), tags=tags)

    def collected() -> KVBatchMeta:
        return seeds.in_order_of_prompts(materialize)(None, "train", ["a", "b", "c"], {})

    generate(_Owner(3), _batch(["b", "a", "c"]))
    batch = collected()
    assert batch.keys == ["b_2_0", "b_2_1", "b_10_0", "a_0_0", "a_1_0", "c_0_0"]
    assert [tag["key"] for tag in batch.tags] == batch.keys
    assert not {"a", "b", "c"} & set(seeds._submitted)
    generate(_Owner(None), _batch(["b", "a", "c"]))
    assert collected().keys == finished


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.fixture
def generators_are_put_back() -> Any:
    """Puts the process's generators back into the state that they were in."""
    python, numpy, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch_)


@pytest.mark.usefixtures("generators_are_put_back")
def test_a_process_draws_by_the_seed_and_its_place() -> None:
    class _Rank(_Owner):
        def __init__(self, seed: int | None, rank: int) -> None:
            super().__init__(seed)
            self.config, self.rank = self.config.actor_rollout_ref, rank

    def of_rank(seed: int | None, rank: int) -> Any:
        return seeds.seed_ranks(lambda self: _draw())(_Rank(seed, rank))

    assert of_rank(3, 0) == of_rank(3, 0)
    assert len({of_rank(3, 0), of_rank(3, 1), of_rank(4, 0), of_rank(None, 0), of_rank(None, 0)}) == 5

    def of_worker(seed: int | None, name: str) -> Any:
        drawn = []
        seeds.seed_worker(lambda self, config: drawn.append(_draw()), name)(None, _config(seed))
        return drawn[0]

    assert of_worker(3, "rewards") == of_worker(3, "rewards")
    assert len({of_worker(3, "rewards"), of_worker(3, "trainer"), of_worker(None, "rewards")}) == 3

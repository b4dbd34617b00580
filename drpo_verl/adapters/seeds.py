"""Random numbers that depend on a run's seed alone (``run.seed``): those of each sample, and those of each process.

verl's trainer hands a batch of prompts to the manager of its agent loops, whose workers start a request to vLLM for
each sample, and collects the samples in the order in which they finish. Here the manager gives each prompt a seed, the
worker gives each request one, and the samples are put back into the order of their prompts. Nothing of it happens in a
run without a seed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any

from drpo_verl.configuration.seeds import seed_of

FIELD = "drpo_verl_prompt_seed"
"""The field of a batch of prompts with the seed of each, on its way to the agent loops."""


def derive(*parts: int | str) -> int:
    """A seed that depends on all parts and on nothing else, the same on every machine.

    Args:
        parts: what to tell apart, such as the run's seed, a step and a sample's number.

    Returns:
        A number of 63 bits. vLLM keeps seeds in signed 64 bits, and takes -1 for none.
    """
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _identity(messages: Any) -> str:
    # An image or a video counts as something of its kind: equal prompts are told apart by their number.
    text = json.dumps(messages, sort_keys=True, default=lambda other: type(other).__name__)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class PromptSeeds:
    """The seeds of the prompts of a run.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._round: tuple[str, int] | None = None
        self._seen: Counter[str] = Counter()

    def of(self, prompts: Iterable[Any], *, step: int, validate: bool) -> list[int]:
        """The seed of each prompt.

        A prompt is known by its text, and equal prompts of one step by their order. So the seed depends neither on the
        dataset's other rows nor on where verl cuts a batch. (Benchmarks repeat a problem to sample it many times.)

        Args:
            prompts: the messages of each prompt.
            step: the training step.
            validate: whether the prompts are those of a validation, which has random numbers of its own.
        """
        kind = "validation" if validate else "training"
        if self._round != (kind, step):
            self._round, self._seen = (kind, step), Counter()
        seeds = []
        for messages in prompts:
            identity = _identity(messages)
            seeds.append(derive(self._seed, kind, step, identity, self._seen[identity]))
            self._seen[identity] += 1
        return seeds


_submitted: dict[str, int] = {}
"""The place, in the order of submission, of each prompt whose samples have not been collected, by its uid."""
_places = itertools.count()


def give_seeds(generate_sequences: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``AgentLoopManagerTQ.generate_sequences``: each prompt gets a seed, and its place is remembered."""

    @wraps(generate_sequences)
    def seeded(self: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        seed = seed_of(self.config.actor_rollout_ref.rollout)
        if seed is not None:
            import torch
            from verl.utils import tensordict_utils

            if not isinstance(getattr(self, "_drpo_verl_seeds", None), PromptSeeds):
                self._drpo_verl_seeds = PromptSeeds(seed)
            step = int(tensordict_utils.get(prompts, "global_steps"))
            validate = bool(tensordict_utils.get(prompts, "validate", default=False))
            messages = tensordict_utils.get(prompts, "raw_prompt")
            seeds = self._drpo_verl_seeds.of(messages, step=step, validate=validate)
            _submitted.update(zip(tensordict_utils.get(prompts, "uid"), _places, strict=False))
            prompts = prompts.copy()
            prompts[FIELD] = torch.tensor(seeds, dtype=torch.int64)
        return generate_sequences(self, prompts, *args, **kwargs)

    return seeded


def seed_samples(run_agent_loop: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap ``AgentLoopWorker._run_agent_loop``: the sample's requests carry a seed of its prompt's and its number."""

    @wraps(run_agent_loop)
    async def seeded(self: Any, sampling_params: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        prompt_seed = kwargs.pop(FIELD, None)
        if prompt_seed is not None:
            # Their own dictionary: verl's is that of all samples of the prompt.
            sampling_params = {**sampling_params, "seed": derive(int(prompt_seed), int(kwargs.get("session_id", 0)))}
        return await run_agent_loop(self, sampling_params, *args, **kwargs)

    return seeded


def seed_turns(generate: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap ``LLMServerClient.generate``: each turn of a sample, longer than the last, has random numbers of its own."""

    @wraps(generate)
    async def seeded(
        self: Any, request_id: Any, *, prompt_ids: Any, sampling_params: dict[str, Any], **kwargs: Any
    ) -> Any:
        if seed_of(self.config.actor_rollout_ref.rollout) is not None and sampling_params.get("seed") is not None:
            sampling_params = {**sampling_params, "seed": derive(sampling_params["seed"], len(prompt_ids))}
        return await generate(self, request_id, prompt_ids=prompt_ids, sampling_params=sampling_params, **kwargs)

    return seeded


def in_order_of_prompts(materialize: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``ReplayBuffer._materialize_batch``: the samples come in the order in which their prompts were submitted.

    verl has them in the order in which they finished, which decides what is in a mini-batch.
    """

    @wraps(materialize)
    def ordered(self: Any, partition_id: str, selected_prompt_uids: list[str], *args: Any, **kwargs: Any) -> Any:
        batch = materialize(self, partition_id, selected_prompt_uids, *args, **kwargs)
        places = {uid: _submitted.pop(uid) for uid in selected_prompt_uids if uid in _submitted}
        parts = [key.rsplit("_", 2) for key in batch.keys]  # uid, number of the sample, number of its output
        if parts and all(uid in places for uid, *_ in parts):
            order = [(places[uid], *map(int, numbers)) for uid, *numbers in parts]
            batch.reorder(sorted(range(len(order)), key=order.__getitem__))
        return batch

    return ordered


def seed_process(seed: int, *place: int | str) -> None:
    """Seed Python's, numpy's and PyTorch's generators of this process.

    Args:
        seed: the run's seed.
        place: what tells this process from the run's others.
    """
    import numpy as np
    import torch

    derived = derive(seed, *place)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.manual_seed(derived)


def seed_ranks(init_model: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``ActorRolloutRefWorker.init_model``: new weights (of an adapter) and dropout depend on the run's seed."""

    @wraps(init_model)  # with the attributes by which verl dispatches it
    def seeded(self: Any, *args: Any, **kwargs: Any) -> Any:
        seed = seed_of(self.config.rollout)
        if seed is not None:
            seed_process(seed, "rank", self.rank)
        return init_model(self, *args, **kwargs)

    return seeded


def seed_worker(initialise: Callable[..., None], name: str) -> Callable[..., None]:
    """Wrap the ``__init__`` of a class whose first argument is the whole configuration.

    Args:
        initialise: the method.
        name: what the class does in a run.
    """

    @wraps(initialise)
    def seeded(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        seed = seed_of(config.actor_rollout_ref.rollout)
        if seed is not None:
            seed_process(seed, name)
        initialise(self, config, *args, **kwargs)

    return seeded

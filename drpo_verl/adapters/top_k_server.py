"""verl's vLLM server, asked for the Top-K log-probabilities of what it samples."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import ray
from verl.workers.rollout.replica import RolloutReplica, TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs, Logprob

from drpo_verl.adapters.top_k import encode, top_k_of
from drpo_verl.seams import expect_parameters


class _Sampled:
    """The log-probabilities of the sampled tokens alone, as verl reads them: an object a token and not K + 1."""

    def __init__(self, log_probs: FlatLogprobs) -> None:
        self._log_probs = log_probs

    def __iter__(self) -> Iterator[dict[int, Logprob]]:
        for first in self._log_probs.start_indices:
            yield {self._log_probs.token_ids[first]: Logprob(self._log_probs.logprobs[first])}


class _Listening:
    """vLLM's engine, which asks for the Top-K with each request and keeps what came of it."""

    def __init__(self, engine: Any, top_k: int) -> None:
        self._engine = engine
        self._top_k = top_k
        self._finished: dict[str, tuple[int, FlatLogprobs]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> AsyncIterator[Any]:
        if sampling_params.logprobs is not None:
            sampling_params.logprobs = self._top_k
            sampling_params.flat_logprobs = True
            # No text for any of the entries.
            sampling_params.detokenize = bool(sampling_params.stop)
        async for output in self._engine.generate(
            prompt=prompt, sampling_params=sampling_params, request_id=request_id, **kwargs
        ):
            if sampling_params.logprobs is not None and output.finished and output.outputs:
                completion = output.outputs[0]
                self._finished[request_id] = (len(output.prompt_token_ids), completion.logprobs)
                completion.logprobs = _Sampled(completion.logprobs)
            yield output

    def take(self, request_id: str) -> tuple[int, FlatLogprobs] | None:
        """The prompt's length and all log-probabilities of a finished request, once."""
        return self._finished.pop(request_id, None)


class TopKServer(vLLMHttpServer):
    """Puts the Top-K log-probabilities into the extra fields of each answer."""

    @property
    def engine(self) -> Any:
        """vLLM's engine, as verl sets it."""
        return self._listening

    @engine.setter
    def engine(self, engine: Any) -> None:
        # No more than there are tokens: the divergence is then over all of them.
        top_k = min(top_k_of(self.config) or 0, len(self.model_config.tokenizer))
        self._listening = None if engine is None else _Listening(engine, top_k)

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, *args: Any, **kwargs: Any
    ) -> TokenOutput:
        """Generate, as verl's server does."""
        try:
            answer = await super().generate(prompt_ids, sampling_params, request_id, *args, **kwargs)
        finally:
            finished = self._listening.take(request_id) if self._listening is not None else None
        if finished is not None and answer.token_ids:
            prompt_length, flat = finished
            shape = (len(flat), -1)
            answer.extra_fields.update(
                encode(
                    prompt_length,
                    np.asarray(flat.token_ids, dtype=np.int64).reshape(shape),
                    np.asarray(flat.logprobs, dtype=np.float64).reshape(shape),
                )
            )
        return answer


class TopKReplica(vLLMReplica):
    """verl's vLLM replica, with that server when the run's method asks for Top-K."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if top_k_of(self.config) is not None and not (self.is_reward_model or self.is_teacher_model):
            expect_parameters(vLLMHttpServer.generate, "vLLMHttpServer.generate", "prompt_ids", "request_id")
            expect_parameters(SamplingParams, "vllm.SamplingParams", "logprobs", "flat_logprobs", "detokenize")
            self.server_class = ray.remote(TopKServer)


def replica(registered: type[RolloutReplica]) -> type[RolloutReplica]:
    """What stands for "vllm" in verl's registry of replicas: ours, as long as what it had was verl's own."""
    return TopKReplica if registered is vLLMReplica else registered

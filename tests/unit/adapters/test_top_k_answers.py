"""Top-K rows of samples that come in several answers, through verl's own clients and agent loops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from drpo_verl.adapters.top_k import IDS, LOG_PROBS, NOT_LISTED, encode
from drpo_verl.adapters.top_k_answers import Answer, rows_of_sample

VOCABULARY, K = 30, 4
ROLLOUT = {"name": "vllm", "full_determinism": False, "response_length": 9, "custom": None}


class _Server:
    """A rollout engine with a random distribution after each beginning, that is interrupted after some tokens."""

    def __init__(self, interrupted_after: list[int]) -> None:
        self.requests: list[list[int]] = []
        self._interrupted_after = interrupted_after
        self.generate = self

    @staticmethod
    def rows(beginning: list[int], tokens: list[int]) -> dict[str, Tensor]:
        """What the engine sends for tokens that it has sampled after a beginning."""
        return encode(len(beginning), *_Server._listed(beginning, tokens))

    @staticmethod
    def _listed(beginning: list[int], tokens: list[int]) -> tuple[Any, Any]:
        scores = []
        for i in range(len(tokens)):
            generator = torch.Generator().manual_seed(hash(tuple(beginning + tokens[:i])) % 2**31)
            scores.append(torch.randn(VOCABULARY, generator=generator).log_softmax(-1))
        log_mu = torch.stack(scores) if scores else torch.zeros(0, VOCABULARY)
        ids = torch.cat([torch.tensor(tokens, dtype=torch.int64)[:, None], log_mu.topk(K).indices], dim=-1)
        return ids.numpy(), log_mu.gather(-1, ids).double().numpy()

    async def remote(self, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> TokenOutput:
        self.requests.append(list(prompt_ids))
        most = sampling_params["max_tokens"]
        count = min(self._interrupted_after.pop(0), most) if self._interrupted_after else most
        tokens = [(7 * len(prompt_ids) + i) % VOCABULARY for i in range(count)]
        return TokenOutput(
            token_ids=tokens,
            log_probs=[-1.0] * count,
            stop_reason="completed" if count == most else "aborted",
            extra_fields={"global_steps": 1, **(self.rows(prompt_ids, tokens) if count else {})},
        )


def _client(kind: type[LLMServerClient], server: _Server, monkeypatch: pytest.MonkeyPatch) -> LLMServerClient:
    async def acquired(*_: Any, **__: Any) -> tuple[str, _Server]:
        return "server", server

    async def at_once(seconds: float) -> None:
        return None

    client = object.__new__(kind)  # of a Ray cluster, of which there is none
    client.config = OmegaConf.create({"actor_rollout_ref": {"rollout": ROLLOUT}})
    monkeypatch.setattr(client, "_acquire_server", acquired)
    monkeypatch.setattr(client, "_release_server", lambda *_, **__: None)
    monkeypatch.setattr("verl.workers.rollout.llm_server.asyncio.sleep", at_once)
    return client


def _stored(run: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What verl's worker stores of the samples of an agent loop's ``run``, made at the same time."""
    stored: list[dict[str, Any]] = []

    class Loop:
        def __init__(self, **_: Any) -> None:
            self.run = run

    class Worker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):  # type: ignore[misc]  # of a Ray actor
        async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict[str, Any]) -> None:
            return None

        async def _compute_teacher_logprobs(self, *_: Any, **__: Any) -> None:
            return None

        def _compute_multi_modal_inputs(self, *_: Any) -> dict[str, Any]:
            return {}

        def _compute_position_ids(self, input_ids: Tensor, *_: Any) -> Tensor:
            return input_ids

    async def put(keys: list[str], fields: list[dict[str, Any]], **_: Any) -> None:
        stored.extend(fields)

    monkeypatch.setattr("verl.trainer.ppo.v1.agent_loop_tq.list_of_dict_to_tensordict", lambda fields: fields)
    monkeypatch.setattr("verl.trainer.ppo.v1.agent_loop_tq.tq.async_kv_batch_put", put, raising=False)
    monkeypatch.setattr("verl.experimental.agent_loop.agent_loop.hydra.utils.instantiate", lambda **_: Loop())
    monkeypatch.setitem(agent_loop._agent_loop_registry, "test", {})
    worker = object.__new__(Worker)
    worker.config = worker.llm_client = worker.tokenizer = worker.processor = worker.hf_model_type = None
    worker.dataset_cls, worker.tools = None, []
    monkeypatch.setattr("verl.experimental.agent_loop.agent_loop.DictConfigWrap", lambda config: config)

    async def all_samples() -> None:
        trajectory = {"step": 0, "sample_index": 0, "rollout_n": 0, "validate": False}
        samples = [
            worker._run_agent_loop({}, trajectory, agent_name="test", trace=False, uid="u", session_id=i,
                                   global_steps=1, raw_prompt=[], sample=i)
            for i in range(3)
        ]  # fmt: skip
        await asyncio.gather(*(asyncio.ensure_future(each) for each in samples))

    worker.config = type("Config", (), {"data": None})
    asyncio.run(all_samples())
    return stored


def _expected(tokens: list[int], sampled: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Rows that hold something for the tokens in some ranges of a sample only."""
    ids = torch.full((len(tokens), K + 1), NOT_LISTED, dtype=torch.int32)
    log_probs = torch.zeros((len(tokens), K + 2), dtype=torch.float16)
    for start, end in sampled:
        rows = _Server.rows(tokens[:start], tokens[start:end])
        ids[start - 1 : end - 1] = rows[IDS][start - 1 : end - 1]
        log_probs[start - 1 : end - 1] = rows[LOG_PROBS][start - 1 : end - 1]
    return {IDS: ids, LOG_PROBS: log_probs}


def _output(prompt: list[int], response: list[int], extra_fields: dict[str, Any]) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=prompt, response_ids=response, response_mask=[1] * len(response), metrics={},
        extra_fields=extra_fields,
    )  # fmt: skip


@pytest.mark.parametrize("interruptions", [[], [4], [0, 3, 0, 2]], ids=str)
def test_an_interrupted_sample_has_a_row_for_each_token(
    interruptions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [_Server(list(interruptions)) for _ in range(3)]

    async def run(sampling_params: dict[str, Any], *, sample: int, **_: Any) -> AgentLoopOutput:
        client = _client(FullyAsyncLLMServerClient, servers[sample], monkeypatch)
        prompt = list(range(sample, sample + 3))
        answer = await client.generate("id", prompt_ids=prompt, sampling_params={})
        return _output(prompt, answer.token_ids, answer.extra_fields)

    for fields in _stored(run, monkeypatch):
        tokens = fields["input_ids"].tolist()
        assert len(tokens) == 3 + 9
        expected = _expected(tokens, [(3, 12)])
        assert torch.equal(fields[IDS], expected[IDS]) and torch.equal(fields[LOG_PROBS], expected[LOG_PROBS])
    assert all(len(server.requests) == 1 + len(interruptions) for server in servers)


def test_a_tools_tokens_have_rows_that_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Server([])

    async def run(sampling_params: dict[str, Any], *, sample: int, **_: Any) -> AgentLoopOutput:
        client = _client(LLMServerClient, server, monkeypatch)
        prompt, extra_fields = [sample, 2, 3], {}
        tokens = list(prompt)
        for _turn in range(2):
            answer = await client.generate("id", prompt_ids=tokens, sampling_params={"max_tokens": 3})
            extra_fields = extra_fields or answer.extra_fields  # as verl's tool agent keeps them
            tokens = [*tokens, *answer.token_ids, 20, 21]  # what the tool says
        return _output(prompt, tokens[3:12], extra_fields)  # cut short within what it says the second time

    stored = _stored(run, monkeypatch)
    assert len(stored) == 3
    for fields in stored:
        expected = _expected(fields["input_ids"].tolist(), [(3, 6), (8, 11)])
        assert torch.equal(fields[IDS], expected[IDS]) and torch.equal(fields[LOG_PROBS], expected[LOG_PROBS])
        assert (fields[IDS][[5, 6]] == NOT_LISTED).all(), "the rows of the tool's two tokens"


def test_answers_go_to_the_samples_that_begin_as_they_were_asked() -> None:
    def answer(prompt: list[int], tokens: list[int]) -> Answer:
        found = Answer.of(prompt, dict(_Server.rows(prompt, tokens)))
        assert found is not None
        return found

    first, branch, second = answer([1, 2], [3, 4]), answer([1, 9], [3, 4]), answer([1, 2, 3, 4, 5], [6, 7])
    found = rows_of_sample(torch.tensor([1, 2, 3, 4, 5, 6, 7]), [first, branch, second])
    expected = _expected([1, 2, 3, 4, 5, 6, 7], [(2, 4), (5, 7)])
    assert torch.equal(found[IDS], expected[IDS]) and torch.equal(found[LOG_PROBS], expected[LOG_PROBS])
    # An agent loop that has changed a token: from there on the rows are not of this sample's beginning.
    changed = rows_of_sample(torch.tensor([1, 2, 3, 8]), [first])
    assert torch.equal(changed[IDS], _expected([1, 2, 3, 8], [(2, 3)])[IDS])
    assert Answer.of([1], {"global_steps": 1}) is None

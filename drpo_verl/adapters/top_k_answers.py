"""The Top-K rows of a sample that came in several answers: of interrupted requests, and of the turns of a conversation.

The rollout engine answers a request with the rows of the tokens it has sampled (see ``top_k``). verl's asynchronous
trainers interrupt requests and go on with new ones, whose prompts end with what was sampled before, and its tool agent
makes a request a turn; of all these answers verl keeps the tokens and the sampled tokens' log-probabilities alone.
Here each answer is kept beside the request's prompt for as long as its sample is being made, and its rows go to the
place in the sample that begins with that prompt. Tokens that no request has sampled, a tool's among them, have rows
that hold nothing, as the prompt has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from drpo_verl.adapters.top_k import IDS, LOG_PROBS, NOT_LISTED

_Coroutine = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Answer:
    """The Top-K rows of one answer, and what was asked.

    Attributes:
        prompt: the tokens of the request, ``[P]``, which include those of earlier answers.
        ids: the rows of the ``T`` tokens that were sampled, ``[T, K + 1]``.
        log_probs: theirs, ``[T, K + 2]``.
    """

    prompt: Tensor
    ids: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, prompt_ids: Sequence[int], extra_fields: dict[str, Any]) -> Answer | None:
        """Take the rows that hold something out of an answer's extra fields, if it has any.

        Args:
            prompt_ids: of the request.
            extra_fields: of the answer; ``IDS`` and ``LOG_PROBS`` are removed.
        """
        ids, log_probs = extra_fields.pop(IDS, None), extra_fields.pop(LOG_PROBS, None)
        if ids is None or log_probs is None:
            return None
        sampled = ids[:, 0] != NOT_LISTED
        return cls(torch.as_tensor(list(prompt_ids), dtype=torch.int64), ids[sampled], log_probs[sampled])


def rows_of_sample(tokens: Tensor, answers: Sequence[Answer]) -> dict[str, Tensor]:
    """The rows of a whole sample, one for each of its tokens.

    Args:
        tokens: of the sample, prompt and response, ``[N]``.
        answers: at least one; those to other beginnings than the sample's are left out, and so is what follows the
            first token of an answer that is another in the sample.

    Returns:
        ``IDS`` and ``LOG_PROBS``, as ``top_k.encode`` lays them out.
    """
    first = answers[0]
    ids = torch.full((len(tokens), first.ids.shape[1]), NOT_LISTED, dtype=first.ids.dtype)
    log_probs = torch.zeros((len(tokens), first.log_probs.shape[1]), dtype=first.log_probs.dtype)
    for answer in answers:
        start = len(answer.prompt)
        if start == 0 or not torch.equal(tokens[:start], answer.prompt):
            continue
        there = tokens[start : start + len(answer.ids)]
        same = int((answer.ids[: len(there), 0] == there).cumprod(0).sum())
        rows = slice(start - 1, start - 1 + same)
        ids[rows], log_probs[rows] = answer.ids[:same], answer.log_probs[:same]
    return {IDS: ids, LOG_PROBS: log_probs}


_ANSWERS: ContextVar[list[Answer] | None] = ContextVar("drpo_verl_top_k_answers", default=None)
"""Those of the sample that is being made; tasks that make it have their own, or share their parent's."""


def keep_for_sample(run_agent_loop: _Coroutine) -> _Coroutine:
    """Wrap ``AgentLoopWorker._run_agent_loop``, which makes one sample: answers are kept until it returns."""

    @wraps(run_agent_loop)
    async def keeping(*args: Any, **kwargs: Any) -> Any:
        token = _ANSWERS.set([])
        try:
            return await run_agent_loop(*args, **kwargs)
        finally:
            _ANSWERS.reset(token)

    return keeping


def keep_answers(generate: _Coroutine) -> _Coroutine:
    """Wrap ``LLMServerClient.generate``, which makes one request: its answer's rows are kept for the sample."""

    @wraps(generate)
    async def keeping(self: Any, request_id: Any, *, prompt_ids: Sequence[int], **kwargs: Any) -> Any:
        output = await generate(self, request_id, prompt_ids=prompt_ids, **kwargs)
        answers = _ANSWERS.get()
        if answers is not None and IDS in output.extra_fields:
            answer = Answer.of(prompt_ids, output.extra_fields)
            if answer is not None:
                answers.append(answer)
        return output

    return keeping


def put_into_sample(as_dict: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Wrap ``AgentLoopOutput.as_dict``, which makes the fields of a sample that are stored: with its rows."""

    @wraps(as_dict)
    def putting(self: Any) -> dict[str, Any]:
        if answers := _ANSWERS.get():
            tokens = torch.as_tensor([*self.prompt_ids, *self.response_ids], dtype=torch.int64)
            self.extra_fields.update(rows_of_sample(tokens, answers))
        return as_dict(self)

    return putting

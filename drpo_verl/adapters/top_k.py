"""The behaviour policy's Top-K log-probabilities: from vLLM, with the sample, to the divergence in the actor.

They travel in the two fields of a sample that verl has for a teacher's Top-K (``teacher_ids`` and
``teacher_logprobs``), which every stop on the way lets through, with a row for each token of prompt and response. Row
``t`` holds the distribution from which token ``t + 1`` was drawn, as the actor's logits at ``t`` do; rows before tokens
that were not sampled (the prompt's, a tool's), and the last row, hold nothing. The first K + 1 columns are the sampled
token and the K likeliest; where the sampled token is among them, its second mention has the id -1. One more column of
log-probabilities is that of all other tokens together, which the rounded ones do not give.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from drpo_verl.adapters.logits import PLAIN, Layout, log_probabilities
from drpo_verl.losses.partition import Derivative, Divergence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tensordict import TensorDict

DIVERGENCE = "drpo_verl_partition_divergence"
DERIVATIVE = "drpo_verl_partition_derivative"
IDS, LOG_PROBS = "teacher_ids", "teacher_logprobs"
NOT_LISTED = -1
"""In the place of an id: a row that holds nothing, or the second mention of the sampled token."""


class TopKError(ValueError):
    """A sample came without the behaviour policy's Top-K log-probabilities."""


def top_k_of(rollout: Any) -> int | None:
    """K as the method has put it into the rollout's configuration (``rollout.custom``), or None."""
    custom = rollout.get("custom") or {}
    top_k = (custom.get("drpo_verl") or {}).get("top_k")
    return None if top_k is None else int(top_k)


def encode(prompt_length: int, ids: NDArray[np.int64], log_probs: NDArray[np.float64]) -> dict[str, Tensor]:
    """The fields of a sample.

    Six bytes an entry and two for the rest, 128 a token at K = 20: int32, and float16, whose log-probabilities are
    within 2e-4 of what they were in probability.

    Args:
        prompt_length: tokens before the first sampled one; > 0.
        ids: ``[T, K + 1]``, the sampled token first.
        log_probs: the same shape.
    """
    length, width = ids.shape
    listed, scores = torch.from_numpy(ids).to(torch.int32), torch.from_numpy(log_probs)
    listed[:, 1:][listed[:, 1:] == listed[:, :1]] = NOT_LISTED
    rest = 1.0 - torch.where(listed >= 0, scores.exp(), 0.0).sum(1, keepdim=True)
    scores = torch.cat([scores, rest.clamp(min=0.0).log()], dim=1)
    all_ids = torch.full((prompt_length + length, width), NOT_LISTED, dtype=torch.int32)
    all_log_probs = torch.zeros((prompt_length + length, width + 1), dtype=torch.float16)
    rows = slice(prompt_length - 1, prompt_length + length - 1)
    all_ids[rows] = listed
    # -inf (a token that sampling excludes, or no other token at all) and below fp16's range are both no probability.
    all_log_probs[rows] = scores.clamp(min=torch.finfo(torch.float16).min).to(torch.float16)
    return {IDS: all_ids, LOG_PROBS: all_log_probs}


def divergence_from_logits(
    logits: Tensor,
    data: TensorDict,
    divergence: Divergence,
    layout: Layout = PLAIN,
    derivative: Derivative | None = None,
) -> dict[str, Tensor]:
    """D between the behaviour policy and the logits' policy over the partition of each token.

    Gathers K + 1 log-probabilities a token from the logits of the forward pass: no second one, and no copy of them.

    Args:
        logits: ``[R, S, V / shards]``, of all tokens of the micro-batch, over the temperature.
        data: the micro-batch.
        divergence: the divergence to compute.
        layout: of the logits.
        derivative: what to compute of the same tokens beside it, for a direction that needs it.

    Returns:
        ``DIVERGENCE``, and ``DERIVATIVE`` if asked for, ``[R, S]`` fp32; meaningless where a row holds nothing or the
        engine pads, and NaN for a response token whose row is another token's (see ``require_divergence``).

    Raises:
        TopKError: when a sample has no Top-K log-probabilities, or not one row for each of its tokens.
    """
    ids, log_mu = _required(data)
    with torch.no_grad(), torch.autocast(device_type=logits.device.type, enabled=False):
        positions = layout.positions(len(ids), data["input_ids"].offsets())
        if positions.shape != logits.shape[:2]:
            raise TopKError(
                f"the engine has laid out the logits as {list(logits.shape[:2])} and not as {list(positions.shape)}: "
                "it pads in a way that is not known here (pad_to_length=True does), and the rows of Top-K would be "
                "other tokens'."
            )
        log_mu = log_mu.float()
        rest = log_mu[:, -1].exp()
        # Before anything is laid out, so that it does not depend on how: every divergence hands a NaN on.
        rest = torch.where(_rows_of_other_tokens(ids, data), math.nan, rest)
        row = positions.flatten()  # a row of padding takes the last, which holds nothing
        ids = ids[row]
        log_pi = log_probabilities(logits.detach().flatten(0, 1), ids.clamp(min=0).long(), layout.shard)
        partition = log_mu[row, :-1], log_pi, (ids >= 0).float(), rest[row]
        found = {DIVERGENCE: divergence(*partition).view(positions.shape)}
        if derivative is not None:
            vocabulary = logits.shape[-1] * layout.shard.count
            found[DERIVATIVE] = derivative(*partition, vocabulary).view(positions.shape)
        return found


def _rows_of_other_tokens(ids: Tensor, data: TensorDict) -> Tensor:
    """Which rows, ``[N]``, are those of response tokens and name another one as sampled."""
    responses = data["responses"]
    lengths = responses.offsets().diff()
    first = data["input_ids"].offsets()[1:] - lengths - 1 - responses.offsets()[:-1]
    total = responses.values().shape[0]
    rows = torch.repeat_interleave(first, lengths, output_size=total) + torch.arange(total, device=first.device)
    wrong = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    wrong[rows] = (ids[rows, 0] != responses.values()) & data["response_mask"].values().bool()
    return wrong


def require_divergence(mean_divergence: float) -> None:
    """Refuse a micro-batch with a token whose Top-K log-probabilities are another's.

    Args:
        mean_divergence: over its tokens; NaN if there was one.

    Raises:
        TopKError: saying so.
    """
    if math.isnan(mean_divergence):
        raise TopKError(
            "the Top-K log-probabilities of some response tokens are missing, or those of other tokens: the samples "
            "were changed after vLLM had returned them. A Top-K method needs an agent loop whose samples are the "
            "prompts of its requests and what vLLM has answered, as those of single_turn_agent and tool_agent are."
        )


def _required(data: TensorDict) -> tuple[Tensor, Tensor]:
    tokens = data["input_ids"].values().shape[0]
    present = data[IDS].values().shape[0] if IDS in data and LOG_PROBS in data else 0
    if present != tokens:
        raise TopKError(
            f"{present} rows of Top-K log-probabilities for {tokens} tokens of this micro-batch: a Top-K method needs "
            "samples of verl's vLLM rollout. Check that the agent loop (agent_name in the data, "
            "actor_rollout_ref.rollout.agent.default_agent_loop) asks verl's server for them, and that the rollout was "
            "started with +method=."
        )
    return data[IDS].values(), data[LOG_PROBS].values()

"""The behaviour policy's Top-K log-probabilities: from vLLM, with the sample, to the divergence in the actor.

They travel in the two fields of a sample that verl has for a teacher's Top-K (``teacher_ids`` and
``teacher_logprobs``, ``[prompt + response, K + 1]``), which every stop on the way lets through. Row ``t`` holds the
distribution from which token ``t + 1`` was drawn, as the actor's logits at ``t`` do; rows of the prompt but the last,
and the last of the response, hold nothing. Column 0 is the sampled token. The others are the K likeliest; where the
sampled token is among them, its second mention has the id -1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from drpo_verl.objectives.partition import Divergence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tensordict import TensorDict

DIVERGENCE = "drpo_verl_partition_divergence"
IDS, LOG_PROBS = "teacher_ids", "teacher_logprobs"
_NOT_LISTED = -1
_CHUNK_ELEMENTS = 2**24
"""Logits that are exponentiated in fp32 at once: 64 MB."""


class TopKError(ValueError):
    """A sample came without the behaviour policy's Top-K log-probabilities."""


def top_k_of(rollout: Any) -> int | None:
    """K as the method has put it into the rollout's configuration (``rollout.custom``), or None."""
    custom = rollout.get("custom") or {}
    top_k = (custom.get("drpo_verl") or {}).get("top_k")
    return None if top_k is None else int(top_k)


def encode(prompt_length: int, ids: NDArray[np.int64], log_probs: NDArray[np.float64]) -> dict[str, Tensor]:
    """The fields of a sample.

    Six bytes an entry: int32 and float16, whose log-probabilities are within 2e-4 of what they were in probability.

    Args:
        prompt_length: tokens before the first sampled one; > 0.
        ids: ``[T, K + 1]``, the sampled token first.
        log_probs: the same shape.
    """
    length, width = ids.shape
    listed = torch.from_numpy(ids).to(torch.int32)
    listed[:, 1:][listed[:, 1:] == listed[:, :1]] = _NOT_LISTED
    all_ids = torch.full((prompt_length + length, width), _NOT_LISTED, dtype=torch.int32)
    all_log_probs = torch.zeros((prompt_length + length, width), dtype=torch.float16)
    rows = slice(prompt_length - 1, prompt_length + length - 1)
    all_ids[rows] = listed
    # -inf (a token that sampling excludes) and below fp16's range are both no probability at all.
    all_log_probs[rows] = torch.from_numpy(log_probs).clamp(min=torch.finfo(torch.float16).min).to(torch.float16)
    return {IDS: all_ids, LOG_PROBS: all_log_probs}


def divergence_from_logits(logits: Tensor, data: TensorDict, divergence: Divergence) -> dict[str, Tensor]:
    """D between the behaviour policy and the logits' policy over the partition of each token.

    Gathers K + 1 logits a token, and normalises by a log-sum-exp that goes over the vocabulary in chunks of tokens:
    no second forward, and no copy of the logits.

    Args:
        logits: ``[1, N, V]``, of all tokens of the micro-batch one after the other, over the temperature.
        data: the micro-batch.
        divergence: which.

    Returns:
        ``DIVERGENCE``, ``[1, N]`` fp32; meaningless where a row holds nothing.

    Raises:
        TopKError: when a sample has no Top-K log-probabilities, or not one row for each of its tokens.
    """
    ids, log_mu = _required(data, logits.shape[1])
    with torch.no_grad(), torch.autocast(device_type=logits.device.type, enabled=False):
        scores = logits.detach().squeeze(0)
        gathered = scores.gather(1, ids.clamp(min=0).long()).float()
        log_pi = gathered - _log_normaliser(scores).unsqueeze(1)
        return {DIVERGENCE: divergence(log_mu.float(), log_pi, (ids >= 0).float()).unsqueeze(0)}


def _required(data: TensorDict, tokens: int) -> tuple[Tensor, Tensor]:
    present = data[IDS].values().shape[0] if IDS in data and LOG_PROBS in data else 0
    if present != tokens:
        raise TopKError(
            f"{present} rows of Top-K log-probabilities for {tokens} tokens of this micro-batch: a Top-K method needs "
            "single-turn samples from verl's vLLM rollout. Check agent_name in the data, "
            "actor_rollout_ref.rollout.agent.default_agent_loop, and that the rollout was started with +method=."
        )
    return data[IDS].values(), data[LOG_PROBS].values()


def _log_normaliser(scores: Tensor) -> Tensor:
    rows = max(1, _CHUNK_ELEMENTS // scores.shape[1])
    return torch.cat([chunk.float().logsumexp(-1) for chunk in scores.split(rows)])

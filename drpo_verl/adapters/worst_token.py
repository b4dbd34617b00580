"""The token of a step on which pi and mu differ most, with its context: what a large maximum is about."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.workers.utils.padding import no_padding_2_padding

from drpo_verl.run_folder.worst_tokens import WorstToken

_CONTEXT_TOKENS = 32


class WorstOfStep:
    """Keeps the micro-batch with the largest difference of a step, and looks into it once, at the step's end."""

    def __init__(self) -> None:
        self._largest = -1.0
        self._kept: tuple[Tensor, Tensor, TensorDict] | None = None

    def offer(self, largest: float, log_probs: Tensor, behaviour_field: str, data: TensorDict) -> None:
        """A micro-batch that has been trained on.

        Args:
            largest: its abs(pi - mu), at most.
            log_probs: log pi as the engine gives it, over prompts and responses.
            behaviour_field: which field of the batch is log mu.
            data: the micro-batch.
        """
        if largest > self._largest:
            self._largest, self._kept = largest, (log_probs.detach(), data[behaviour_field], data)

    def take(self, tokenizer: Any, step: int | None) -> WorstToken | None:
        """The worst token since the last call; None when there was none.

        Args:
            tokenizer: of the policy.
            step: the trainer's global step.
        """
        kept, self._kept, self._largest = self._kept, None, -1.0
        if kept is None:
            return None
        log_probs, log_behaviour, data = kept
        fields = TensorDict(
            {"mask": data["response_mask"], "mu": log_behaviour, "advantages": data["advantages"]},
            batch_size=data.batch_size,
        ).to_padded_tensor()
        pi = no_padding_2_padding(log_probs, data).float().exp()
        mu = fields["mu"].float().exp()
        difference = torch.where(fields["mask"].bool(), (pi - mu).abs(), -1.0)
        row, column = divmod(int(difference.argmax()), difference.shape[1])
        prompt, response = (_row(data[name], row) for name in ("prompts", "responses"))
        context = [*prompt, *response[:column]][-_CONTEXT_TOKENS:]
        return WorstToken(
            step=step,
            abs_prob_diff=difference[row, column].item(),
            mu=mu[row, column].item(),
            pi=pi[row, column].item(),
            advantage=fields["advantages"][row, column].item(),
            position=column,
            token=tokenizer.decode([response[column]]),
            context=tokenizer.decode(context),
        )


def _row(tensor: Tensor, row: int) -> list[int]:
    ids: list[int] = (tensor.unbind()[row] if tensor.is_nested else tensor[row]).tolist()
    return ids


def worst_over_ranks(worst_here: WorstToken | None, group: Any) -> WorstToken | None:
    """The worst of all data-parallel ranks; every rank has to call it."""
    worst_of_ranks: list[WorstToken | None] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(worst_of_ranks, worst_here, group=group)
    return max(filter(None, worst_of_ranks), key=lambda token: token.abs_prob_diff, default=None)

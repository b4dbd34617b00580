"""vLLM's offline engine, which gets its prompts as verl's rollout engine does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from drpo_verl.cpu import vllm_distribution
from drpo_verl.errors import UserError

if TYPE_CHECKING:
    from vllm import LLM

# Before vLLM is imported, here and in the workers that it spawns, which import the main module and with it this one.
vllm_distribution.install()


def start(
    model: str,
    prompts: Sequence[Sequence[int]],
    *,
    device: str,
    max_tokens: int,
    tensor_parallel_size: int,
    gpu_memory_utilization: float | None = None,
    **settings: Any,
) -> LLM:
    """Start vLLM with room for the longest prompt and its response.

    Args:
        model: a folder, or a name on the hub.
        prompts: the token ids of each prompt.
        device: a torch device type, see ``drpo_verl.engine.device.device_type``.
        max_tokens: length of the longest response; it is shorter where the model has no room for it.
        tensor_parallel_size: number of devices over which vLLM splits the model.
        gpu_memory_utilization: share of each card's memory that vLLM may take; None for vLLM's own default.
        **settings: further arguments of ``vllm.LLM``.

    Raises:
        UserError: a prompt leaves no room for a response.
    """
    from vllm import LLM

    on_cpu = device == "cpu"
    return LLM(
        model=model,
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=_context_length(model, max(map(len, prompts)), max_tokens),
        # As in the CPU experiments: compiling takes longer than what it saves.
        enforce_eager=on_cpu,
        **({"distributed_executor_backend": "uni"} if on_cpu and tensor_parallel_size == 1 else {}),
        **({} if gpu_memory_utilization is None else {"gpu_memory_utilization": gpu_memory_utilization}),
        **settings,
    )


def encode(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    """Return the token ids of a prompt as verl's agent loop does; a model without a chat template gets plain text."""
    if tokenizer.chat_template:
        return list(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        )
    return list(tokenizer("\n".join(message["content"] for message in messages))["input_ids"])


def _context_length(model: str, longest_prompt: int, max_tokens: int) -> int:
    from transformers import AutoConfig

    room = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None) or sys.maxsize
    if longest_prompt >= room:
        raise UserError(
            f"a prompt has {longest_prompt} tokens, and the model takes {room} with its response: leave it out."
        )
    return int(min(longest_prompt + max_tokens, room))

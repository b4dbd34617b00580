"""The training engine's process: transformers' forward pass, in the precision in which verl's FSDP computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drpo_verl.adapters.head import compute_head_in_fp32
from drpo_verl.engine.process import serve
from drpo_verl.probe.job import Job
from drpo_verl.probe.tokens import NOT_LISTED, Samples, Scores

_BATCH_LOGITS = 2**28
"""Logits of one forward pass: 1 GiB in fp32."""
_CHUNK_LOGITS = 2**24
"""Logits that are normalised in fp32 at once: 64 MiB."""


@dataclass(frozen=True)
class Batch:
    """B sequences of similar length, padded on the right to L tokens.

    Attributes:
        samples: indices of the samples, ``[B]``.
        ids: token ids, ``[B, L]``.
        attended: 1 for a token and 0 for padding, ``[B, L]``.
        predicting: True where the next token is one of the response, ``[B, L]``.
    """

    samples: list[int]
    ids: Tensor
    attended: Tensor
    predicting: Tensor


def score(job: Job, samples: Samples) -> Scores:
    """Compute the log-probabilities of a job's samples."""
    model = load(job.model, job.settings.train_dtype, job.device)
    if job.settings.head_dtype:
        compute_head_in_fp32(model)
    return log_probs(model, samples, job.settings.train_dtype, job.settings.temperature)


def load(model: str, dtype: str, device: str) -> Any:
    """Load a model as FSDP2 computes with it: fp32 parameters rounded to ``dtype``, and buffers as they are."""
    import transformers

    # verl's default, where it is installed.
    flash = device == "cuda" and dtype != "float32" and transformers.utils.is_flash_attn_2_available()
    module = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="flash_attention_2" if flash else "sdpa"
    )
    for parameter in module.parameters():
        parameter.data = parameter.data.to(device, getattr(torch, dtype))
    return module.to(device).eval()


@torch.inference_mode()
def log_probs(model: Any, samples: Samples, dtype: str, temperature: float) -> Scores:
    """Compute log-probabilities of the sampled tokens and of the Top-K, from logits over the temperature, in fp32.

    Args:
        model: a model that ``load`` returned.
        samples: the samples to score.
        dtype: precision of autocast; float32 means none, as in verl.
        temperature: divides the logits; above 0.
    """
    device, vocabulary = model.device, model.config.get_text_config().vocab_size
    precision = getattr(torch, dtype)
    chunk = max(1, _CHUNK_LOGITS // vocabulary)
    top_log_pi = np.empty(samples.top_ids.shape, np.float32)
    ends = np.cumsum(samples.response_lengths)
    for batch in batches(samples, _BATCH_LOGITS // vocabulary):
        with nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision):
            logits = model(
                input_ids=batch.ids.to(device), attention_mask=batch.attended.to(device), use_cache=False
            ).logits
        tokens = np.concatenate([np.arange(ends[i] - samples.response_lengths[i], ends[i]) for i in batch.samples])
        positions = batch.predicting.nonzero()  # [n, 2], in the order of the tokens
        for first in range(0, len(tokens), chunk):
            part = tokens[first : first + chunk]
            row, column = positions[first : first + chunk].to(device).unbind(1)
            scores = logits[row, column].float() / temperature
            ids = torch.from_numpy(samples.top_ids[part]).to(device)
            listed = scores.gather(1, ids.clamp(min=0)) - scores.logsumexp(-1, keepdim=True)
            top_log_pi[part] = listed.masked_fill(ids == NOT_LISTED, 0.0).cpu().numpy()
    return Scores(log_pi=top_log_pi[:, 0], top_log_pi=top_log_pi, vocabulary=vocabulary)


def batches(samples: Samples, tokens: int) -> Iterator[Batch]:
    """Cut the samples into batches of at most ``tokens`` positions, padding included, or of one longer sample."""
    lengths = samples.prompt_lengths + samples.response_lengths
    starts = np.cumsum(lengths) - lengths
    batch: list[int] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield _pad(samples, batch, lengths, starts)
            batch = []
        batch.append(index)
    if batch:
        yield _pad(samples, batch, lengths, starts)


def _pad(samples: Samples, batch: list[int], lengths: Any, starts: Any) -> Batch:
    shape = (len(batch), int(lengths[batch].max()))
    ids, attended = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    predicting = torch.zeros(shape, dtype=torch.bool)
    for row, index in enumerate(batch):
        start, length = int(starts[index]), int(lengths[index])
        ids[row, :length] = torch.from_numpy(samples.ids[start : start + length])
        attended[row, :length] = 1
        predicting[row, int(samples.prompt_lengths[index]) - 1 : length - 1] = True
    return Batch(batch, ids, attended, predicting)


if __name__ == "__main__":
    serve(score)

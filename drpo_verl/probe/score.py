"""The training engine's process: transformers' forward, in the precision in which verl's FSDP computes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drpo_verl.probe.job import Job, serve
from drpo_verl.probe.tokens import NOT_LISTED, Samples, Scores

_BATCH_LOGITS = 2**28
"""Logits of one forward pass, in the precision of the engine: 1 GiB in fp32."""
_CHUNK_LOGITS = 2**24
"""Of which so many are normalised in fp32 at once: 64 MiB."""


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length.

    Attributes:
        samples: which, ``[B]``.
        ids: ``[B, L]``, padded on the right.
        attended: 1 for a token, ``[B, L]``.
        predicting: True where the next token is of the response, ``[B, L]``.
    """

    samples: list[int]
    ids: Tensor
    attended: Tensor
    predicting: Tensor


def score(job: Job) -> Scores:
    """Score the job's samples."""
    samples: Samples = job.read_samples()
    model = load(job.model, job.settings.train_dtype, job.device)
    return log_probs(model, samples, job.settings.train_dtype, job.settings.temperature)


def load(model: str, dtype: str, device: str) -> Any:
    """The model as FSDP2 computes with it: fp32 parameters, rounded to ``dtype``, and buffers as they are."""
    import transformers

    # As verl's default, where it can be had.
    flash = device == "cuda" and dtype != "float32" and transformers.utils.is_flash_attn_2_available()
    module = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="flash_attention_2" if flash else "sdpa"
    )
    for parameter in module.parameters():
        parameter.data = parameter.data.to(device, getattr(torch, dtype))
    return module.to(device).eval()


@torch.inference_mode()
def log_probs(model: Any, samples: Samples, dtype: str, temperature: float) -> Scores:
    """Log-probabilities of the sampled tokens and of the Top-K, from logits over the temperature, in fp32.

    Args:
        model: see ``load``.
        samples: what to score.
        dtype: of autocast; none for float32, as in verl.
        temperature: > 0.
    """
    device, vocabulary = model.device, model.config.get_text_config().vocab_size
    top_log_pi = np.empty(samples.top_ids.shape, np.float32)
    ends = np.cumsum(samples.response_lengths)
    for batch in batches(samples, _BATCH_LOGITS // vocabulary):
        precision = getattr(torch, dtype)
        with nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision):
            logits = model(
                input_ids=batch.ids.to(device), attention_mask=batch.attended.to(device), use_cache=False
            ).logits
        rows = np.concatenate([np.arange(ends[i] - samples.response_lengths[i], ends[i]) for i in batch.samples])
        where = batch.predicting.nonzero()  # [n, 2], in the order of rows
        chunk = max(1, _CHUNK_LOGITS // vocabulary)
        for first in range(0, len(rows), chunk):
            some = rows[first : first + chunk]
            row, column = where[first : first + chunk].to(device).unbind(1)
            scores = logits[row, column].float() / temperature
            ids = torch.from_numpy(samples.top_ids[some]).to(device)
            of_ids = scores.gather(1, ids.clamp(min=0)) - scores.logsumexp(-1, keepdim=True)
            top_log_pi[some] = of_ids.masked_fill(ids == NOT_LISTED, 0.0).cpu().numpy()
    return Scores(log_pi=top_log_pi[:, 0], top_log_pi=top_log_pi)


def batches(samples: Samples, tokens: int) -> Iterator[Batch]:
    """Cut the samples into batches of at most ``tokens`` positions, padding included, or of one sample."""
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
    serve(Path(sys.argv[1]), score)

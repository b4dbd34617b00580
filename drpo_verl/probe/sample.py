"""The rollout engine's process: vLLM samples, and reports the log-probabilities of what it sampled."""

from __future__ import annotations

from typing import Any

import numpy as np

from drpo_verl.engine.offline import encode, start
from drpo_verl.engine.process import serve
from drpo_verl.probe.job import Job
from drpo_verl.probe.settings import vllm_quantization
from drpo_verl.probe.tokens import NOT_LISTED, Samples


def sample(job: Job) -> Samples:
    """Sample the job's responses with the settings that verl gives to vLLM.

    Raises:
        UserError: a prompt leaves no room for a response.
    """
    from transformers import AutoTokenizer
    from vllm import SamplingParams, TokensPrompt

    settings = job.settings
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    prompts = [encode(tokenizer, messages) for messages in job.prompts]
    top_k = min(job.top_k, len(tokenizer))
    llm = start(
        job.model,
        prompts,
        device=job.device,
        max_tokens=settings.max_tokens,
        tensor_parallel_size=settings.tensor_parallel_size,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        dtype=settings.dtype,
        kv_cache_dtype=settings.kv_cache_dtype,
        quantization=vllm_quantization(settings),
        hf_overrides={"head_dtype": settings.head_dtype} if settings.head_dtype else {},
        seed=settings.seed,
        max_logprobs=top_k,
        logprobs_mode="processed_logprobs",
    )
    answers = llm.generate(
        [TokensPrompt(prompt_token_ids=ids) for ids in prompts],
        SamplingParams(
            n=settings.samples,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens,
            logprobs=top_k,
            flat_logprobs=True,
            detokenize=False,
        ),
        use_tqdm=False,
    )
    return _collect(answers)


def _collect(answers: list[Any]) -> Samples:
    responses = [(answer.prompt_token_ids, output) for answer in answers for output in answer.outputs]
    top_ids, top_log_mu = [], []
    for _, output in responses:
        shape = (len(output.token_ids), -1)
        ids = np.asarray(output.logprobs.token_ids, np.int64).reshape(shape)
        ids[:, 1:][ids[:, 1:] == ids[:, :1]] = NOT_LISTED
        top_ids.append(ids)
        top_log_mu.append(np.asarray(output.logprobs.logprobs, np.float32).reshape(shape))
    log_mu = np.concatenate(top_log_mu)
    return Samples(
        ids=np.concatenate([np.asarray([*prompt, *output.token_ids], np.int64) for prompt, output in responses]),
        prompt_lengths=np.asarray([len(prompt) for prompt, _ in responses], np.int64),
        response_lengths=np.asarray([len(output.token_ids) for _, output in responses], np.int64),
        log_mu=log_mu[:, 0],
        top_ids=np.concatenate(top_ids),
        top_log_mu=log_mu,
    )


if __name__ == "__main__":
    serve(sample)

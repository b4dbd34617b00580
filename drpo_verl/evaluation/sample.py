"""The process in which vLLM samples the responses of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drpo_verl.engine.offline import encode, start
from drpo_verl.engine.process import serve


def sample(job: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Sample the responses to each of a job's prompts."""
    from tqdm import tqdm
    from transformers import AutoTokenizer
    from vllm import SamplingParams, TokensPrompt

    class Progress(tqdm):  # type: ignore[misc, type-arg]
        """Writes the number of finished responses to the file that the command reads."""

        def update(self, n: float | None = 1) -> bool | None:
            Path(job["progress"]).write_text(str(self.n + (n or 0)))
            return super().update(n)

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    prompts = [encode(tokenizer, messages) for messages in job["prompts"]]
    sampling = {name: job[name] for name in ("temperature", "top_p", "max_tokens")}
    of_engine = ("device", "max_tokens", "tensor_parallel_size", "gpu_memory_utilization", "dtype", "seed")
    engine = {name: job[name] for name in of_engine}
    llm = start(job["model"], prompts, **engine)
    answers = llm.generate(
        [TokensPrompt(prompt_token_ids=ids) for ids in prompts],
        [SamplingParams(n=n, **sampling) for n in job["samples"]],
        use_tqdm=Progress,
    )
    return [
        [
            {"text": output.text, "tokens": len(output.token_ids), "truncated": output.finish_reason == "length"}
            for output in answer.outputs
        ]
        for answer in answers
    ]


if __name__ == "__main__":
    serve(sample)

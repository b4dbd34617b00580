"""The process in which vLLM samples the responses of an evaluation, and writes one JSON line per problem."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from drpo_verl.engine.offline import encode, start
from drpo_verl.engine.process import reporting

JOB_FILE, RESPONSES_FILE, PROGRESS_FILE = "job.json", "responses.jsonl", "progress"


def main(folder: Path) -> None:
    """Read the job in a folder, sample, and write the responses there."""
    from tqdm import tqdm
    from transformers import AutoTokenizer
    from vllm import SamplingParams, TokensPrompt

    class Progress(tqdm):  # type: ignore[misc, type-arg]
        """Writes the number of finished responses to the file that the command reads."""

        def update(self, n: float | None = 1) -> bool | None:
            (folder / PROGRESS_FILE).write_text(str(self.n + (n or 0)))
            return super().update(n)

    job: dict[str, Any] = json.loads((folder / JOB_FILE).read_text())
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    prompts = [encode(tokenizer, messages) for messages in job["prompts"]]
    sampling = {name: job[name] for name in ("temperature", "top_p", "max_tokens")}
    engine = {name: job[name] for name in ("device", "max_tokens", "tensor_parallel_size", "dtype", "seed")}
    llm = start(job["model"], prompts, **engine)
    answers = llm.generate(
        [TokensPrompt(prompt_token_ids=ids) for ids in prompts],
        [SamplingParams(n=n, **sampling) for n in job["samples"]],
        use_tqdm=Progress,
    )
    with (folder / RESPONSES_FILE).open("w") as file:
        for answer in answers:
            responses = [
                {"text": output.text, "tokens": len(output.token_ids), "truncated": output.finish_reason == "length"}
                for output in answer.outputs
            ]
            file.write(json.dumps(responses) + "\n")


if __name__ == "__main__":
    with reporting(Path(sys.argv[1])):
        main(Path(sys.argv[1]))

"""verl's vLLM server with Top-K, and an interruption of all its requests: run by test_top_k_server.py. Prints JSON.

Usage: python top_k_server.py MODEL RAY_FOLDER
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.actor import random_model
from drpo_verl.configuration.compose import compose_run
from drpo_verl.models.tiny_model import TinyPolicyRecipe
from drpo_verl.train import export_environment

if TYPE_CHECKING:
    from verl.workers.rollout.replica import TokenOutput

    from drpo_verl.adapters.top_k_server import TopKServer

PROMPT = [3, 4, 5]
SETTINGS = [
    "experiment=cpu_tiny", "method=dppo_topk_tv", "actor_rollout_ref.rollout.max_model_len=128",
    "actor_rollout_ref.rollout.max_num_seqs=1",  # the other requests wait
]  # fmt: skip


def summary(answer: TokenOutput) -> dict[str, Any]:
    """What the test wants to know of an answer."""
    return {
        "tokens": len(answer.token_ids),
        "log_probs": None if answer.log_probs is None else len(answer.log_probs),
        "stop_reason": answer.stop_reason,
        "rows": [len(rows) for name, rows in answer.extra_fields.items() if name.startswith("teacher_")],
    }


async def interrupted(server: TopKServer) -> dict[str, Any]:
    """The answers to requests before, during and after an interruption."""
    await server.launch_server()

    async def answer(name: str, max_tokens: int) -> dict[str, Any]:
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "logprobs": True, "max_tokens": max_tokens}
        return summary(await server.generate(PROMPT, {**sampling, "ignore_eos": True}, name))

    answers = {"before": await answer("before", 4)}
    requests = {name: asyncio.ensure_future(answer(name, 120)) for name in ("sampled", "waiting")}
    states = server.engine.output_processor.request_states
    while not any(state.detokenizer.num_output_tokens() for state in states.values()):
        await asyncio.sleep(0.001)
    await server.abort_all_requests(reject_request=True)
    answers |= {name: await request for name, request in requests.items()}
    answers["rejected"] = await asyncio.wait_for(answer("rejected", 4), timeout=60)
    await server.resume_generation()
    answers["after"] = await answer("after", 4)
    answers["kept"] = len(server.engine._finished)
    server.engine.shutdown()
    return answers


def main(model: Path, ray_folder: str) -> None:
    """Start a server as verl's replica does, and print what it answers."""
    random_model(TinyPolicyRecipe(), model)  # what it samples does not matter
    config = compose_run([*SETTINGS, f"actor_rollout_ref.model.path={model}"])
    export_environment(config)  # before verl and vLLM are imported
    import ray
    from verl.workers.rollout.replica import RolloutMode
    from verl.workers.rollout.vllm_rollout import vllm_async_server

    from drpo_verl.adapters.top_k_server import TopKServer

    # verl waits a minute for requests in vLLM's queue to have a token each, and then interrupts them all the same.
    vllm_async_server._GATE_BARRIER_TIMEOUT_S = 0.0
    ray.init(num_cpus=1, _temp_dir=ray_folder, include_dashboard=False, object_store_memory=100_000_000)
    rollout, policy = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model
    server = TopKServer(rollout, policy, RolloutMode.STANDALONE, [], 0, 0, 1, 1, "")
    print(json.dumps(asyncio.run(interrupted(server))), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

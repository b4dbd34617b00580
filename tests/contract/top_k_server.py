"""verl's vLLM server with Top-K, outside Ray's workers, interrupted: run by test_top_k_server.py. Prints JSON.

Usage: python top_k_server.py MODEL RAY_FOLDER
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import ray
from verl.workers.rollout.replica import RolloutMode, TokenOutput

from benchmarks.actor import configuration
from drpo_verl.adapters.top_k_server import TopKServer

PROMPT = [3, 4, 5]
# vLLM has room for one request at a time, so that the others wait.
SETTINGS = ["method=dppo_topk_tv", "actor_rollout_ref.rollout.max_num_seqs=1", "run.prefork=false"]


def told(answer: TokenOutput) -> dict[str, Any]:
    """What a test wants to know of an answer."""
    return {
        "tokens": len(answer.token_ids),
        "log_probs": answer.log_probs and len(answer.log_probs),
        "stop_reason": answer.stop_reason,
        "rows": {name: len(rows) for name, rows in answer.extra_fields.items() if name.startswith("teacher_")},
    }


async def interrupted(server: TopKServer) -> dict[str, Any]:
    """Answers to requests before, during and after an interruption of all requests."""
    await server.launch_server()

    async def answer(name: str, max_tokens: int) -> dict[str, Any]:
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "logprobs": True, "max_tokens": max_tokens}
        return told(await server.generate(PROMPT, {**sampling, "ignore_eos": True}, name))

    answers = {"before": await answer("before", 4)}
    requests = {name: asyncio.ensure_future(answer(name, 400)) for name in ("sampled", "waiting")}
    while not any(state.num_output_tokens for state in _states(server)):
        await asyncio.sleep(0.01)
    await server.abort_all_requests(reject_request=True)
    answers |= {name: await request for name, request in requests.items()}
    answers["rejected"] = await asyncio.wait_for(answer("rejected", 4), timeout=20)
    await server.resume_generation()
    answers["after"] = await answer("after", 4)
    answers["kept"] = len(server.engine._finished)
    server.engine.shutdown()
    return answers


def _states(server: TopKServer) -> list[Any]:
    return list(server.engine.output_processor.request_states.values())


if __name__ == "__main__":
    ray.init(num_cpus=1, _temp_dir=sys.argv[2], include_dashboard=False, object_store_memory=100_000_000)
    config = configuration(*SETTINGS, f"actor_rollout_ref.model.path={sys.argv[1]}").actor_rollout_ref
    config.rollout.free_cache_engine = False
    server = TopKServer(config.rollout, config.model, RolloutMode.STANDALONE, [], 0, 0, 1, 1, "")
    print(json.dumps(asyncio.run(interrupted(server))), flush=True)

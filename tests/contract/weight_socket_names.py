"""Prints what verl's sender and receiver call the socket of the weights, in one Ray cluster and then in another."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import ray
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.replica import RolloutMode
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

from benchmarks.actor import SMALL, configuration, random_model


def names(model: Path) -> list[str]:
    """The socket's name on both sides."""
    section = configuration(f"actor_rollout_ref.model.path={model}").actor_rollout_ref
    rollout, of_model = omega_conf_to_dataclass(section.rollout), omega_conf_to_dataclass(section.model)
    sender = ServerAdapter(rollout, of_model, None)
    vLLMHttpServer(
        rollout, of_model, RolloutMode.HYBRID, [], replica_rank=0, node_rank=0, gpus_per_node=1, nnodes=1,
        cuda_visible_devices="",
    )  # fmt: skip
    receiver = object.__new__(vLLMColocateWorkerExtension)
    receiver.model_runner, receiver.local_rank = SimpleNamespace(), 0
    return [sender.zmq_handle, receiver._get_zmq_handle()]


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "RAY_LOCAL_WORLD_SIZE": "1"}
    model = Path(sys.argv[1]) / "model"
    random_model({"model_type": "qwen3", **SMALL}, model, "cpu")
    seen = []
    for cluster in ("1", "2"):
        ray.init("local", num_cpus=1, _temp_dir=f"{sys.argv[2]}{cluster}", include_dashboard=False,
                 object_store_memory=100_000_000)  # fmt: skip
        seen.append({"job": ray.get_runtime_context().get_job_id(), "names": names(model)})
        ray.shutdown()
    print(json.dumps(seen))

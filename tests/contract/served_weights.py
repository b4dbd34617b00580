"""What vLLM serves of a model's weights, after it has loaded them and after verl has sent others.

Usage: python served_weights.py FOLDER QUANTIZATION RESULT

RESULT becomes a JSON object with what differs from the round trip of each weight ("loaded" and "synchronised"), and
whether the weights that were sent are still what they were ("untouched").
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drpo_verl.configuration.precision import EMULATED
from drpo_verl.engine.device import engine_environment

PARTS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13_weight": ("gate_proj", "up_proj"),
    "w2_weight": ("down_proj",),
}
PLAIN = ("embed_tokens.weight", "lm_head.weight", "norm.weight", ".mlp.gate.weight")


def expected(name: str, weights: dict[str, Tensor], weight_format: str) -> Tensor:
    """The values of one of vLLM's parameters, in any order: its kernel for experts has an order of its own."""
    from drpo_verl.cpu.emulated_weights import round_trip

    fused = next((part for part in PARTS if part in name), None)
    if fused is None:
        names = [name]
    elif ".experts." in name:
        prefix = name.split("routed_experts", maxsplit=1)[0]
        names = [each for each in weights if each.startswith(prefix) and each.split(".")[-2] in PARTS[fused]]
    else:
        names = [name.replace(fused, part) for part in PARTS[fused]]
    parts = [weights[each] for each in names]
    if not name.endswith(PLAIN):
        parts = [round_trip(part, weight_format) for part in parts]
    return torch.cat([part.flatten() for part in parts])


def differing(model: Any, weights: dict[str, Tensor], weight_format: str) -> list[str]:
    """The names of the served parameters that are not as expected."""
    found = []
    for name, parameter in model.named_parameters():
        values = expected(name, weights, weight_format)
        served = parameter.float()
        if name in weights:
            served = served[: len(weights[name])]  # vLLM pads the vocabulary
        if not torch.equal(served.flatten().sort().values, values.sort().values):
            found.append(name)
    return found


def main(folder: str, quantization: str, result: Path) -> None:
    """See the module."""
    os.environ.update({**engine_environment("cpu", folder), "VERL_PLATFORM": "cpu"})
    from safetensors.torch import load_file
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    from drpo_verl.engine.offline import start

    llm = start(
        folder, [[1, 2, 3]], device="cpu", max_tokens=4, tensor_parallel_size=1, dtype="float32",
        quantization=quantization,
        worker_extension_cls="verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension",
    )  # fmt: skip
    worker: Any = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker  # type: ignore[attr-defined]
    model, weight_format = worker.model_runner.model, quantization.removeprefix(EMULATED)
    of_checkpoint = load_file(Path(folder, "model.safetensors"))
    loaded = differing(model, of_checkpoint, weight_format)

    torch.manual_seed(1)
    sent = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in of_checkpoint.items()}
    before = {name: weight.clone() for name, weight in sent.items()}
    # As verl's update_weights_from_ipc, which is given these weights in buckets.
    worker.monkey_patch_model(vocab_size=len(of_checkpoint["model.embed_tokens.weight"]))
    worker._update_weights(list(sent.items()), peft_config=None, base_sync_done=False)
    process_weights_after_loading(model, worker.model_runner.vllm_config.model_config, torch.device("cpu"))
    answer = {
        "loaded": loaded,
        "synchronised": differing(model, sent, weight_format),
        "untouched": all(torch.equal(weight, before[name]) for name, weight in sent.items()),
        "parameters": len(list(model.named_parameters())),
    }
    result.write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

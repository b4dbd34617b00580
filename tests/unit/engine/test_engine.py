"""The environment of offline engines, and the prompts that they get."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import LlamaConfig

from drpo_verl.engine.device import device_type, engine_environment
from drpo_verl.engine.offline import encode, start
from drpo_verl.errors import UserError
from drpo_verl.evaluation import run as evaluation
from drpo_verl.evaluation.settings import Settings as Evaluation
from drpo_verl.probe import run as probe
from drpo_verl.probe.settings import Settings as Probe


def test_a_model_without_a_chat_template_gets_plain_text() -> None:
    class Tokenizer:
        chat_template = None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [len(text)]}

    assert encode(Tokenizer(), [{"role": "user", "content": "ab"}, {"role": "user", "content": "c"}]) == [4]


def test_the_cpu_has_what_a_run_on_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("VLLM_", "OMP_", "TORCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert device_type() == "cpu"  # VERL_PLATFORM, or there is nothing else
    variables = engine_environment("cpu", str(tmp_path))
    assert "VLLM_CPU_KVCACHE_SPACE" not in variables  # the user's own
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert variables["TORCH_COMPILE_DISABLE"] == "1"
    assert int(variables["OMP_NUM_THREADS"]) >= 1
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert not [name for name in variables if name.startswith("RAY_")]
    assert engine_environment("cuda", "Qwen/Qwen3-0.6B") == {}


@pytest.mark.parametrize("share", [None, 0.3])
def test_vllm_gets_its_share_of_a_card(share: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("vllm.LLM", lambda **settings: given.update(settings))
    LlamaConfig(max_position_embeddings=64).save_pretrained(tmp_path)
    start(
        str(tmp_path), [[1, 2]], device="cuda", max_tokens=4, tensor_parallel_size=2, gpu_memory_utilization=share,
        dtype="bfloat16",
    )  # fmt: skip
    assert given["max_model_len"] == 6 and given["tensor_parallel_size"] == 2 and given["dtype"] == "bfloat16"
    assert given.get("gpu_memory_utilization") == share


@pytest.mark.parametrize(
    ("device", "share", "message"),
    [
        ("cpu", 0.3, "--gpu-memory-utilization=0.3 is for cards, and the device here is cpu: VLLM_CPU_KVCACHE_SPACE"),
        ("cuda", 90.0, "--gpu-memory-utilization=90.0 is a share of each card's memory"),
        ("cuda", 0.0, "--gpu-memory-utilization=0.0 is a share of each card's memory"),
    ],
)
def test_a_share_of_memory_that_means_nothing(
    device: str, share: float, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("drpo_verl.engine.device.device_type", lambda: device)
    with pytest.raises(UserError, match=message):
        probe.run(Probe("tiny", gpu_memory_utilization=share), tmp_path, Console())
    with pytest.raises(UserError, match=message):
        evaluation.run(Evaluation("tiny", tmp_path / "x.parquet", gpu_memory_utilization=share), tmp_path, Console())

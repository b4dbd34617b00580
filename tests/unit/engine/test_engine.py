"""The environment of offline engines, and the prompts that they get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drpo_verl.engine.device import device_type, engine_environment
from drpo_verl.engine.offline import encode


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

"""Real FSDP2 ranks over gloo: a step's metrics do not depend on ranks and micro-batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drpo_verl.tasks import tiny_policy

RANK_SCRIPT = Path(__file__).with_name("actor_rank.py")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy: no warm-up is needed to compare ranks."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_policy.build_tokenizer()
    torch.manual_seed(0)
    tiny_policy.build_model(tiny_policy.TinyPolicyRecipe(), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train(model: Path, out: Path, ranks: int, micro_batch: int, *overrides: str) -> dict[str, list[float]]:
    environment = os.environ | {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(RANK_SCRIPT), str(model), str(out), *overrides]
    command.append(f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro_batch}")
    processes = [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)[-4000:]
    metrics: dict[str, list[float]] = json.loads(out.read_text())
    return metrics


def _ours(metrics: dict[str, list[float]]) -> dict[str, float]:
    return {
        name: value
        for name, (value, *rest) in ((n, v) for n, v in metrics.items() if n.startswith(("trust_region/", "mismatch/")))
        if not rest
    }


@pytest.mark.parametrize("method", ["drpo", "grpo"])
def test_one_and_two_ranks_and_any_micro_batch_give_the_same_metrics(model: Path, tmp_path: Path, method: str) -> None:
    override = [f"method={method}"]
    override += ["actor_rollout_ref.actor.policy_loss.delta=" + ("0.02" if method == "drpo" else "null")]
    one = _ours(_train(model, tmp_path / "one.json", 1, 8, *override))
    two = _ours(_train(model, tmp_path / "two.json", 2, 2, *override))
    assert two == pytest.approx(one, rel=1e-4, abs=1e-7)
    assert one["mismatch/kl"] > 0.01, "pi and mu are the same: the case tests nothing"
    if method == "drpo":
        assert 0 < one["trust_region/outside_frac"] < 1 and one["trust_region/weight_min"] < 0
    else:
        assert not any(name.startswith("trust_region/") for name in one)

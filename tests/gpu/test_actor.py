"""The FSDP2 actor over NCCL gives the metrics and gradients of the one on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.actor import random_model
from drpo_verl.adapters.driver_metrics import NAMESPACES
from drpo_verl.models.tiny_model import TinyPolicyRecipe

DELTA = "actor_rollout_ref.actor.policy_loss.delta"
CASES = {
    "drpo": ["method=drpo", f"{DELTA}=0.02"],
    "grpo": ["method=grpo", "actor_rollout_ref.actor.clip_ratio_low=0.1"],
    "dppo_topk_tv": ["method=dppo_topk_tv", f"{DELTA}=0.45"],
    "minirl": ["method=minirl", f"{DELTA}_low=0.1"],  # its distance is from a recomputed pi_old, as the next one's
    "drpo_decoupled": ["method=drpo_decoupled", f"{DELTA}=0.02"],
}


def _step(folder: Path, device: str, model: Path, micro_batch: int, packed: bool) -> dict[str, Any]:
    folder.mkdir()
    layout = [
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro_batch}",
        f"actor_rollout_ref.model.use_remove_padding={packed}",
    ]
    cases = {name: [*overrides, *layout] for name, overrides in CASES.items()}
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), str(root / "tests"), os.environ.get("PYTHONPATH")]))
    script = Path(__file__).with_name("actor_step.py")
    variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | ({"VERL_PLATFORM": "cpu"} if device == "cpu" else {})
    process = subprocess.run(
        [sys.executable, script, model, folder, json.dumps(cases)],
        env={k: v for k, v in os.environ.items() if k != "VERL_PLATFORM"} | variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-4000:]
    return dict(json.loads((folder / "metrics.json").read_text()))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory, device: str) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The same step on a CPU, and on the device: as the GPU experiments have it, packed, with torch's own attention."""
    folder = tmp_path_factory.mktemp("actor")
    random_model(TinyPolicyRecipe(), folder / "model")
    runs = {"expected": ("cpu", 8, False), "there": (device, 4, True)}
    return {
        name: (folder / name, _step(folder / name, run[0], folder / "model", *run[1:])) for name, run in runs.items()
    }


@pytest.mark.parametrize("case", list(CASES))
def test_the_metrics_are_the_same(steps: dict[str, tuple[Path, dict[str, Any]]], case: str) -> None:
    expected, there = (
        # But for quantiles: the last digit of a difference near the edge of a bin decides which one it is in.
        {k: v[0] for k, v in run[case].items() if k.startswith(NAMESPACES) and not re.search(r"_p\d\d$", k)}
        for _, run in steps.values()
    )
    assert there == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert expected["mismatch/kl"] > 0.01, "pi and mu are the same: the case tests nothing"


@pytest.mark.parametrize("case", list(CASES))
def test_the_gradients_are_the_same(steps: dict[str, tuple[Path, dict[str, Any]]], case: str) -> None:
    expected, there = (torch.load(folder / f"{case}.pt") for folder, _ in steps.values())
    assert len(expected) == len(there) > 10
    size = torch.stack([each.norm() for each in expected]).norm()
    difference = torch.stack([(a - b).norm() for a, b in zip(there, expected, strict=True)]).norm()
    assert size > 0 and difference < 1e-3 * size

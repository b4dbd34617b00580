"""Real vLLM, given weights as verl gives them, serves what went through the format and back, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("served_weights.py")


@pytest.fixture(scope="session")
def random_mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random policy that is a mixture of experts."""
    from benchmarks.actor import random_model
    from drpo_verl.models.tiny_model import TinyMoeRecipe

    folder = tmp_path_factory.mktemp("mixture")
    random_model(TinyMoeRecipe(), folder)
    return folder


@pytest.mark.parametrize(
    ("policy", "quantization"), [("random_policy", "emulated_int4"), ("random_mixture", "emulated_fp8")]
)
def test_served_weights_are_the_round_trip_after_loading_and_after_a_weight_sync(
    policy: str, quantization: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    result = tmp_path / "result.json"
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(request.getfixturevalue(policy)), quantization, str(result)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:]
    answer = json.loads(result.read_text())
    assert answer.pop("parameters") > 20
    assert answer == {"loaded": [], "synchronised": [], "untouched": True}

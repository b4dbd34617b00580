"""An evaluation for real: problems are made, vLLM samples from the tiny policy, its reward scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBLEMS, K = 24, 4


def command(*arguments: str) -> str:
    # Nothing is exported for it: the command knows what a machine without an accelerator needs.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "VERL_", "OMP_", "HF_"))
    }
    run = subprocess.run(
        [sys.executable, "-m", "drpo_verl.cli", *arguments],
        env={**environment, "COLUMNS": "100"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert run.returncode == 0, f"{run.stdout}{run.stderr}"
    return run.stdout


def test_the_tiny_policy_on_arithmetic(tmp_path: Path) -> None:
    command("data", "arithmetic", "--train", "8", "--test", str(PROBLEMS), "--out", str(tmp_path))
    shown = command(
        "eval", "tiny", str(tmp_path / "test.parquet"), "--k", str(K), "--max-tokens", "8", "--dtype", "float32",
        "--out", str(tmp_path / "eval"),
    )  # fmt: skip
    result = json.loads((tmp_path / "eval" / "eval.json").read_text())
    figures = result["results"]["drpo_verl/arithmetic"]
    assert (figures["problems"], figures["samples"]) == (PROBLEMS, PROBLEMS * K)
    # The warm-up stopped where over a quarter is right, and 40 % declined.
    average = figures[f"avg@{K}"]
    assert 0.1 < average["value"] < 0.7
    assert average["low"] < average["value"] < average["high"] and average["method"] == "bootstrap"
    assert figures["pass@1"]["value"] == pytest.approx(average["value"])
    assert figures["pass@1"]["value"] < figures["pass@2"]["value"] < figures[f"pass@{K}"]["value"]
    assert 1 <= figures["mean_tokens"] <= 8
    assert result["versions"]["vllm"] and result["settings"]["k"] == K

    lines = [json.loads(line) for line in (tmp_path / "eval" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == PROBLEMS and all(len(line["responses"]) == K for line in lines)
    for line in lines:
        for response in line["responses"]:
            try:
                right = int(response["text"]) == int(line["ground_truth"])
            except ValueError:  # declined, or cut
                right = False
            assert response["score"] == float(right), response
    total = sum(response["score"] for line in lines for response in line["responses"])
    assert average["value"] == pytest.approx(total / (PROBLEMS * K))

    assert f"avg@{K}" in shown and f"{average['value']:.3f}  (" in shown
    assert f"avg@{K}" in (tmp_path / "eval" / "eval.txt").read_text()

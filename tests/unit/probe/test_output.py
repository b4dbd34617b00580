"""What a person gets to see: the command, its errors, the report and the picture."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from synthetic import tokens
from typer.testing import CliRunner

from drpo_verl import evidence
from drpo_verl.cli import app
from drpo_verl.probe.methods import Partition, Responses, measure, methods
from drpo_verl.probe.mismatch import Tokens, by_probability, suggest_delta, summarise
from drpo_verl.probe.picture import draw
from drpo_verl.probe.report import show

METHODS = methods()


def result_of(measured: Tokens) -> dict[str, Any]:
    mu, pi = torch.from_numpy(measured.log_mu).float(), torch.from_numpy(measured.log_pi).float()
    partition = Partition(mu[:, None], pi[:, None], torch.ones(len(mu), 1), vocabulary=2)
    return {
        "model": "some/model",
        "device": "cpu",
        "prompts": 8,
        "samples": 32,
        "tokens": len(mu),
        "mismatch": summarise(measured),
        "by_probability": by_probability(measured),
        "methods": measure(METHODS, Responses(mu, pi, partition, [len(mu)])),
        "suggested_delta": suggest_delta(measured, 0.01),
        "settings": {
            "dtype": "bfloat16",
            "kv_cache_dtype": "fp8_e4m3",
            "quantization": None,
            "train_dtype": "float32",
        },
    }


def shown(result: dict[str, Any]) -> str:
    file = io.StringIO()
    show(result, Console(file=file, width=80))
    return file.getvalue()


@pytest.mark.parametrize("error", [0.02, 1.0])
def test_the_report_fits_a_terminal(error: float) -> None:
    text = shown(result_of(tokens(3000, error)))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text  # nothing is cut off
    for part in ("3,000 tokens", "bfloat16, fp8_e4m3 KV cache", "≤ 1e-4", "> 0.99", "dppo_binary_tv", "Suggested δ"):
        assert part in text, part
    assert all(f" {method.name} " in text for method in METHODS)
    assert "take more prompts" not in text


def test_few_tokens_are_called_few() -> None:
    assert "take more prompts" in shown(result_of(tokens(100)))


def test_equal_engines_suggest_nothing() -> None:
    same = tokens(50, error=0.0)
    assert "No token differs" in shown(result_of(same))


@pytest.mark.parametrize("case", ["many", "one", "equal", "certain"])
def test_the_picture_is_drawn(case: str, tmp_path: Path) -> None:
    measured = {
        "many": tokens(25_000),
        "one": tokens(1),
        "equal": tokens(50, error=0.0),
        "certain": Tokens(torch.zeros(3).double().numpy(), torch.full((3,), -1e-6).double().numpy()),
    }[case]
    draw(measured, result_of(measured), tmp_path / "probe.png")
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "probe.png").stat().st_size > 20_000


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["probe", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "drpo-verl probe smollm2 --train-dtype float32" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/folder"], "error: MODEL='/no/such/folder' does not exist"),
        (["tiny", "--dtype", "bf15"], "error: --dtype='bf15' is not one of bfloat16"),
        (["EMPTY", "--prompts", "EMPTY"], "does not exist: give a verl parquet or a text file"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    arguments = [str(tmp_path) if each == "EMPTY" else each for each in arguments]
    result = CliRunner().invoke(app, ["probe", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert message in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_report_says_what_training_did_with_about_this_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of(tokens(3000))
    mismatch = result["mismatch"]["abs_prob_diff_mean"]
    near = evidence.Evidence("bf16", "fp32", 4, 1.3 * mismatch, 30, {"mu": {0.2: "hurts"}, "pi_old": {}})
    monkeypatch.setattr(evidence, "all_evidence", lambda: (near,))
    assert near.sentence() in " ".join(shown(result).split())
    monkeypatch.setattr(evidence, "all_evidence", lambda: (replace(near, mismatch=9 * mismatch),))
    text = " ".join(shown(result).split())
    assert "No training with about this mismatch was measured" in text and "two million parameters" in text
    assert f"has means of abs(π − μ) of {9 * mismatch:.2g}, and this is {mismatch:.2g}." in text

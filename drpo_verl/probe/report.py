"""The result of a probe as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from drpo_verl.evidence import for_mismatch, studied_mismatches, too_tight
from drpo_verl.probe.settings import describe_rollout

_FEW_TOKENS = 10
"""With fewer tokens outside the suggested boundary, the report says that they are few."""


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print what ``drpo_verl.probe.run.run`` returns so that it can be read on 80 columns."""
    settings = result["settings"]
    head = f", {settings['head_dtype']} LM head" if settings.get("head_dtype") else ""
    lines = [
        f"{result['model']} on {result['device']}: sampled by vLLM in {describe_rollout(settings)} (μ), "
        f"scored by transformers in {settings['train_dtype']}{head} (π)",
        f"{result['prompts']:,} prompts, {result['samples']:,} responses, {result['tokens']:,} tokens",
    ]
    tables = [_overall(result["mismatch"]), _by_probability(result["by_probability"]), _methods(result["methods"])]
    said = [*_suggestion(result["suggested_delta"]), "", *_measured(result["mismatch"]["abs_prob_diff_mean"])]
    for part in ("", *lines, "", tables[0], "", tables[1], "", tables[2], "", *said):
        console.print(part, highlight=False, markup=False)


def _table(title: str, caption: str | None = None) -> Table:
    # Compact, for 80 columns.
    return Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip


def _overall(figures: Mapping[str, float]) -> Table:
    table = Table.grid(padding=(0, 2))
    diff = {name: _number(figures[f"abs_prob_diff_{name}"]) for name in ("mean", "p50", "p99", "max")}
    ratio = {name: f"{figures[f'ratio_{name}']:.4f}" for name in ("p01", "p50", "p99", "max")}
    table.add_row("abs(π − μ)", "mean {mean}, median {p50}, 99 % {p99}, max {max}".format(**diff))
    table.add_row("π/μ", "1 % {p01}, median {p50}, 99 % {p99}, max {max}".format(**ratio))
    table.add_row("KL(μ ‖ π)", f"{_number(figures['kl_k3'])} nats a token (k3), χ² {_number(figures['chi2'])}")
    table.add_row("effective sample size", f"{figures['ess']:.4%} of the tokens")
    table.add_row("correlation of π and μ", f"{figures['correlation']:.6f}")
    return table


def _by_probability(rows: list[Mapping[str, Any]]) -> Table:
    table = _table("By the probability of the token")
    table.add_column("μ", no_wrap=True)
    for name in ("tokens", "share", "abs(π − μ)\nmedian", "\n99 %", "abs(π/μ − 1)\nmedian", "\n99 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        figures = [
            _number(row[f"{figure}_{name}"]) if row["tokens"] else "–"
            for figure in ("abs_prob_diff", "ratio_error")
            for name in ("p50", "p99")
        ]
        table.add_row(_bin(row["bin"]), f"{row['tokens']:,}", f"{row['share']:.1%}", *figures)
    return table


def _methods(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table(
        "What each method would do to these tokens at its defaults\nin % of the tokens, if all had A > 0 / A < 0",
        "removed: w = 0 (clipped, masked); attenuated: 0 < w < 1;\ncorrected: w < 0 (brought back towards μ)",
    )
    table.add_column("+method=", no_wrap=True)
    table.add_column("thresholds")
    for name in ("removed", "attenuated", "corrected", "min w"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, method in methods.items():
        signs = (method["positive_advantage"], method["negative_advantage"])
        table.add_row(
            name,
            _thresholds(method["thresholds"]),
            *(_percent([sign[what] for sign in signs]) for what in ("removed", "attenuated", "corrected")),
            f"{min(sign['weight_min'] for sign in signs):.2f}",
        )
    return table


def _suggestion(suggested: Mapping[str, Any]) -> list[str]:
    both = suggested["delta"]
    if not both["diverging"]:
        return ["No token differs between the engines: they ask nothing of δ."]
    lines = [
        f"Suggested δ for abs(π − μ): {_number(both['delta'])} or more "
        f"(δ_high {_number(suggested['delta_high']['delta'])} for tokens whose probability rose, "
        f"δ_low {_number(suggested['delta_low']['delta'])} for those whose fell).",
        f"There, {both['outside']:,} of the {both['diverging']:,} tokens that differ (at most "
        f"{100 * suggested['share']:.3g} %) sit outside by the engines' difference alone; training adds to it.",
    ]
    if both["outside"] < _FEW_TOKENS:
        lines.append("These are few tokens to go by: take more prompts or samples, or a larger --share.")
    return lines


def _measured(mismatch: float) -> list[str]:
    """What training did where the engines were about as far apart."""
    found = for_mismatch(mismatch)
    if not found:
        return [
            f"No training with about this mismatch was measured: {studied_mismatches()}, and this is {mismatch:.2g}."
        ]
    tight = too_tight(mismatch)
    sentences = [each.sentence() for each in found] + ([tight] if tight else [])
    return ["What training did with about this mismatch:", *sentences]


def _bin(name: str) -> str:
    if name.startswith("le_"):
        return f"≤ {name[3:]}"
    return f"> {name[3:]}" if name.startswith("gt_") else "{} to {}".format(*name.split("_"))


def _thresholds(thresholds: Mapping[str, float]) -> str:
    # Only those that the method is known by; the JSON has the others.
    if "delta_low" in thresholds:
        low, high = thresholds["delta_low"], thresholds["delta_high"]
        region = f", D > {thresholds['region_delta']:g}" if "region_delta" in thresholds else ""
        region += f", δ_b {thresholds['delta_b']:g}" if "delta_b" in thresholds else ""
        return f"δ {high:g}{region}" if low == high else f"δ {low:g}/{high:g}{region}"
    return f"C {thresholds['ratio_cap']:g}" if "ratio_cap" in thresholds else ""


def _percent(shares: list[float]) -> str:
    if not any(shares):
        return "–"
    return " / ".join(f"{100 * share:.{1 if share >= 0.1 else 2}f}" for share in shares)


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) >= 1e-3 or not value else f"{value:.1e}"

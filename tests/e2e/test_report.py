"""The report of real runs, in a real browser."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from browser import open_page
from stack import Run

from drpo_verl.report import write_report


def test_a_report_of_real_runs_is_drawn(exact_run: Run, two_rank_bf16_run: Run, tmp_path: Path) -> None:
    environment = json.loads((exact_run.folder / "environment.json").read_text())
    assert environment["verl"] == version("verl") and environment["ray"] == version("ray")
    out = tmp_path / "report.html"
    write_report([exact_run.folder, two_rank_bf16_run.folder], out)
    page = open_page(out)
    assert page.console == []
    assert {
        "critic_score_mean", "val_core_mean", "trust_region_weight_mean", "trust_region_outside_frac",
        "mismatch_abs_prob_diff_mean", "mismatch_kl", "timing_s", "policy_drift_kl_k3", "rollout_corr_kl",
        "inference_mismatch_by_prob_abs_prob_diff", "policy_drift_by_prob_abs_prob_diff_negative_advantage",
        "policy_drift_by_prob_share",
    } <= set(page.charts)  # fmt: skip
    for key, chart in page.charts.items():
        assert chart.traces, key
        assert all(trace and all(trace) for trace in chart.traces), key
    for key in ("critic_score_mean", "trust_region_weight_mean", "mismatch_abs_prob_diff_mean", "timing_s_step"):
        assert len(page.charts[key].traces) in (2, 4), key  # two methods, each with one line or two
    assert page.html.count('data-label="Token"') == 6  # three steps of each
    for expected in ("drpo", "dppo_topk_tv", "actor_rollout_ref", "bfloat16", version("verl")):
        assert expected in page.html.replace("<wbr>", ""), expected

"""The report's page, as text and in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import open_page
from typer.testing import CliRunner

from drpo_verl.cli import app
from drpo_verl.metrics.catalogue import SECTIONS
from drpo_verl.report import write_report

OF_THE_REAL_RUN = {
    "critic_score_mean", "mismatch_behaviour_log_prob_mean", "response_length_mean", "response_length_clip_ratio",
    "actor_grad_norm", "trust_region_weight_mean", "trust_region_outside_frac",
    "trust_region_outside_frac_positive_advantage", "trust_region_diverging_frac", "trust_region_corrective_frac",
    "mismatch_abs_prob_diff_mean", "mismatch_kl", "mismatch_ratio_max", "mismatch_low_prob_frac", "timing_s_step",
    "timing_s", "perf_throughput",
}  # fmt: skip
ALL_CHARTS = {panel.key for section in SECTIONS for panel in section.charts}


@pytest.fixture
def four_runs(make_run) -> list[Path]:
    """Two seeds of DRPO, one run of DPPO, and an older run of which there is only the metrics file."""
    return [
        make_run("drpo-1"), make_run("drpo-2", scale=1.1, **{"data.seed": 2}),
        make_run("tv", "dppo_binary_tv", scale=0.9, **{"actor_rollout_ref.actor.policy_loss.delta": 0.2}),
        make_run("old", complete=False),
    ]  # fmt: skip


def test_every_chart_is_drawn_in_a_browser(four_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(four_runs, out)
    page = open_page(out)
    assert page.console == []
    assert 'data-drawn="all"' in page.html
    assert set(page.charts) == ALL_CHARTS
    for key, chart in page.charts.items():
        for trace in chart.traces:
            assert trace and all(path and "NaN" not in path for path in trace), (key, trace)
    traces = {key: len(chart.traces) for key, chart in page.charts.items()}
    assert traces["critic_score_mean"] == 4  # a line for each of the three groups, and a band for the two seeds
    assert traces["trust_region_weight_mean"] == 8  # mean and smallest
    assert traces["inference_mismatch_abs_prob_diff_mean"] == 2 * 3 + 3  # the older run has none
    assert traces["val_core_mean"] == 2
    assert traces["policy_drift_by_prob_share"] == 2
    assert traces["timing_s"] == 3
    assert all(
        len(trace) == 8 + 8 for trace in page.charts["policy_drift_by_prob_share"].traces[:1]
    )  # bars, and whiskers of two seeds


def test_an_older_run_has_fewer_charts_and_fits_a_phone(make_run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report([make_run("old", complete=False)], out)
    page = open_page(out, width=500)
    assert set(page.charts) == OF_THE_REAL_RUN
    assert all(len(trace) > 0 for chart in page.charts.values() for trace in chart.traces)
    widths = {float(width) for width in re.findall(r'class="main-svg"[^>]*? width="([\d.]+)"', page.html)}
    assert widths and max(widths) <= 500 - 2 * 16


def test_the_tables_say_what_the_runs_were(four_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(four_runs, out)
    page = re.sub(r"<script\b.*?</script>", "", out.read_text(), flags=re.DOTALL)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.replace("<wbr>", "")))
    for expected in (
        "4 runs in 3 groups", "0.250 0.102 to 0.495", "actor_rollout_ref.actor.policy_loss.delta",
        "No .hydra/config.yaml beside the metrics of: old.", "verl 0.9.1", "No environment.json",
    ):  # fmt: skip
        assert expected in text, expected
    assert "optim.lr" not in text  # the same in all


def test_the_file_needs_nothing_else(four_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(four_runs, out)
    page = out.read_text()
    assert page.count("* plotly.js v") == 1
    tags = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    assert not re.search(r"\ssrc=|<link|@import|url\(|href=\"(?!#)", tags)
    assert "default-src 'none'" in tags


def test_names_are_text_and_not_markup(make_run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report([make_run("a<img>&b", "x</script><img>")], out)
    page = out.read_text()
    assert "<img>" not in page and "&lt;img&gt;" in page


def test_the_worst_tokens_are_in_a_table_the_worst_first(make_run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report([make_run("one"), make_run("old", complete=False)], out)
    (section,) = re.findall(r'<section id="worst_tokens">.*?</section>', out.read_text(), flags=re.DOTALL)
    assert re.findall(r'data-label="Step">(\d+)<', section) == ["1", "2", "3", "4", "5"]  # of seven
    assert section.count(" &lt;b&gt;</code>") == 5 and section.count("12+3</code>") == 5


def test_the_command(make_run, tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "report.html"
    done = CliRunner().invoke(app, ["report", str(make_run("one")), "--out", str(out)])
    assert done.exit_code == 0 and str(out) in done.output and out.exists()
    refused = CliRunner().invoke(app, ["report", str(tmp_path / "none.jsonl")])
    assert refused.exit_code == 1 and "error: no metrics file at" in refused.output
    assert "Example" in CliRunner().invoke(app, ["report", "--help"]).output

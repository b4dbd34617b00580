"""The report's page, as text and in a browser."""

from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
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


def test_mismatch_and_drift_are_lines_of_one_chart_and_told_in_the_table(make_run, tmp_path: Path) -> None:
    run, out = make_run("one"), tmp_path / "report.html"
    write_report([run], out)
    page = out.read_text()
    chart = r'id="chart-inference_mismatch_abs_prob_diff_mean".*?<script[^>]*>(.*?)</script>'
    (drawn,) = re.findall(chart, page, re.DOTALL)
    figure = json.loads(drawn)
    logged = [json.loads(line)["data"] for line in (run / "metrics.jsonl").read_text().splitlines()[1:]]
    for trace, (label, name) in zip(figure["data"], (
        ("mismatch: before any update", "inference_mismatch/abs_prob_diff_mean"),
        ("mismatch and drift: after updates", "policy_drift/abs_prob_diff_mean"),
        ("drift alone: from π_old", "policy_drift/anchor_abs_prob_diff_mean"),
    ), strict=True):  # fmt: skip
        assert label in trace["name"] and f"</span>{label}</li>" in page
        assert trace["y"] == pytest.approx([step[name] for step in logged], rel=1e-4)
    assert figure["layout"]["yaxis"].get("type") != "log"  # mismatch of 1e-7 is none, beside a drift of 1e-2
    overview = _text(page, "overview")
    for name in ("inference_mismatch/abs_prob_diff_mean", "policy_drift/abs_prob_diff_mean"):
        assert f" {sum(step[name] for step in logged) / len(logged):.2g} " in overview


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


LONG = 40
READER = """<script>addEventListener("load", async () => {
  const until = async (met) => { while (!met()) await new Promise((resume) => setTimeout(resume, 20)); };
  const page = document.documentElement, chart = document.getElementById("chart-critic_score_mean");
  await until(() => page.dataset.drawn === "all");
  const state = () => chart.data.map(({name, meta, visible, y}) => ({name, meta, visible, y}));
  const seen = {first: state(), told: [document.querySelector(".smoothing output").textContent]};
  const choose = (id, value) => {
    const input = document.getElementById(id);
    input.value = value;
    input.dispatchEvent(new Event("input", {bubbles: true}));
  };
  let change = 0;
  for (const span of [9, 1]) {
    choose("span", span);
    await until(() => Number(page.dataset.change) > change);
    change = Number(page.dataset.change);
    seen[span] = state();
    seen.told.push(document.querySelector(".smoothing output").textContent);
  }
  choose("span", 5);
  document.querySelector('button[data-group="grpo"]').click();
  await until(() => Number(page.dataset.change) > change + 1);
  seen.hidden = state();
  choose("baseline", "1");
  seen.baselines = [...document.querySelectorAll("tbody[data-baseline]")].map((body) => getComputedStyle(body).display);
  const told = document.body.appendChild(document.createElement("pre"));
  told.id = "seen";
  told.textContent = JSON.stringify(seen);
});</script>"""


@pytest.fixture
def noisy_runs(make_run) -> list[Path]:
    """Two methods with two seeds of 40 steps; one run ended early, and one has values that are not finite."""
    paths = []
    for method in ("drpo", "grpo"):
        for seed in (1, 2):
            end = 25 if (method, seed) == ("grpo", 2) else LONG
            noise = random.Random(f"{method} {seed}")
            metrics = {
                step: {"critic/score/mean": 0.3 + step / 100 + noise.gauss(0, 0.05), "actor/grad_norm": 1.0 + seed}
                for step in range(1, end + 1)
            }
            if method == "drpo":
                metrics[20]["critic/score/mean"] = metrics[21]["critic/score/mean"] = None  # type: ignore[assignment]
            folder = make_run(
                f"{method}-{seed}", method, metrics=metrics,
                **{"run.seed": seed, "trainer.total_training_steps": LONG},
            )  # fmt: skip
            if end < LONG:
                ended = {"steps": end, "of": LONG, "why": "the vLLM server <was> killed"}
                (folder / "summary.json").write_text(json.dumps({"ended": ended}))
            paths.append(folder)
    return paths


def _smoothed(values: Sequence[float | None], span: int) -> list[float | None]:
    """A straight line through what is within the span of each value, by numpy's least squares."""
    known = [(at, value) for at, value in enumerate(values) if value is not None]
    smoothed: list[float | None] = []
    for at, value in enumerate(values):
        near = [pair for pair in known if abs(pair[0] - at) <= span // 2]
        line = np.polynomial.Polynomial.fit(*zip(*near, strict=True), 1)(at) if value is not None else None
        heights = [height for _, height in near]
        smoothed.append(None if line is None else float(np.clip(line, min(heights), max(heights))))
    return smoothed


def test_a_reader_can_smooth_the_curves_and_choose_the_baseline(noisy_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(noisy_runs, out)
    out.write_text(out.read_text().replace("</body>", f"{READER}</body>"))
    page = open_page(out)
    assert page.console == []
    (told,) = re.findall(r'<pre id="seen">(.*?)</pre>', page.html, flags=re.DOTALL)
    seen = json.loads(html.unescape(told))

    kinds = ["band", "logged", "line", "band", "logged", "line", None]  # the last one marks the end of a run
    assert [trace.get("meta") for trace in seen["first"]] == kinds
    assert [trace["visible"] for trace in seen["1"]] == [True, False, True, True, False, True, True]
    assert [trace["visible"] for trace in seen["9"]] == [True] * 7
    of_drpo, of_grpo = [True] * 3, [False] * 4
    assert [trace["visible"] for trace in seen["hidden"]] == of_drpo + of_grpo
    assert seen["told"] == [
        "mean over 3 steps, curves as logged behind", "mean over 9 steps, curves as logged behind",
        "off: curves as logged",
    ]  # fmt: skip
    for line, logged in ((2, 1), (5, 4)):
        values = seen["first"][logged]["y"]
        assert seen["1"][line]["y"] == values and len(values) == LONG
        for name, span in (("first", 3), ("9", 9), ("hidden", 5)):
            assert seen[name][line]["y"] == pytest.approx(_smoothed(values, span), abs=1e-9)
            assert seen[name][logged]["y"] == values
    assert [at for at, value in enumerate(seen["9"][2]["y"], 1) if value is None] == [20, 21]  # a gap
    for band, mean in ((0, 2), (3, 5)):  # whose edges are the line's equals
        edges = seen["9"][band]["y"]
        highs, lows = edges[: len(edges) // 2], edges[len(edges) // 2 :][::-1]
        middle = [value for value in seen["9"][mean]["y"] if value is not None]
        assert all(
            low <= value + 1e-3 and value - 1e-3 <= high for low, value, high in zip(lows, middle, highs, strict=True)
        )
    assert seen["baselines"] == ["none", "table-row-group"]


def test_short_runs_have_nothing_to_smooth(four_runs: list[Path], tmp_path: Path) -> None:
    write_report(four_runs, tmp_path / "report.html")
    assert 'id="span"' not in (tmp_path / "report.html").read_text()


def _text(page: str, section: str) -> str:
    (found,) = re.findall(rf'<section id="{section}".*?</section>', page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", found.replace("<wbr>", ""))))


def test_noisy_runs_in_the_tables(noisy_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(noisy_runs, out)
    page = out.read_text()
    assert "grpo-2 25 of 40 the vLLM server <was> killed" in _text(page, "ended")
    assert _text(page, "not_finite").count("critic/score/mean 20–21") == 2
    pairs = _text(page, "pairs")
    number = r"[+−]0\.\d{3}"
    assert re.search(rf"grpo less drpo ({number}\*  ?{number} to {number}, [012] of 2 ){{2}}", pairs), pairs
    assert "Group Reward at the end Reward, mean over the run drpo" not in pairs  # the first group is the baseline
    assert "drpo less grpo" in pairs  # for the reader who chooses it
    marks = re.findall(r'\{[^{}]*"customdata":\["grpo-2: ended early, after step 25 of 40[^\]]*\]', page)
    assert len(marks) == 2  # a chart of the reward, and one of the gradient norm
    assert all("of 40\\u003cbr\\u003ethe vLLM server \\u003cwas\\u003e killed" in mark for mark in marks)


def test_a_mark_has_its_place_on_a_logarithmic_axis_too(make_run, tmp_path: Path) -> None:
    values = {step: {"mismatch/kl": 0.0 if step == 3 else 0.01 * step} for step in (1, 2, 3)}
    write_report([make_run("one", metrics=values, **{"trainer.total_training_steps": 9})], tmp_path / "report.html")
    assert '"customdata":["one: ended early' not in (tmp_path / "report.html").read_text()


def test_a_metric_without_any_finite_value_has_no_chart_and_is_named(make_run, tmp_path: Path) -> None:
    run = make_run("one", metrics={1: {"critic/score/mean": 0.5, "actor/grad_norm": None}})
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "chart-critic_score_mean" in page and "chart-actor_grad_norm" not in page
    assert "one actor/grad_norm 1" in _text(page, "not_finite")

"""What a report reads of runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from markupsafe import escape
from typer.testing import CliRunner

from drpo_verl.cli import app
from drpo_verl.report import write_report
from drpo_verl.report.groups import group_runs
from drpo_verl.report.load import Ended, load_runs
from drpo_verl.run_folder.steps import wilson_interval


def test_a_run_of_today(make_run) -> None:
    (run,) = load_runs([make_run("one", "cispo")])
    assert (run.name, run.method, run.trained_steps, run.problems) == (
        "one", "cispo", 3, {"drpo_verl/arithmetic": 16}
    )  # fmt: skip
    assert run.config["data.seed"] == "1"
    assert run.config["run.dir"] == "outputs/one"
    assert run.environment == {"verl": "0.9.1", "python": "3.11.2"}
    before, after = run.accuracies
    assert (before.step, before.value, after.step, after.value) == (0, 0.25, 3, 0.5)
    assert before.interval is not None and before.interval[0] < 0.25 < before.interval[1]


def test_settings_have_their_values(make_run) -> None:
    (run,) = load_runs([make_run("one", **{
        "paper.delta": 0.15, "x.given": "${oc.select:paper.delta,0.2}", "x.default": "${oc.select:paper.other,0.2}",
        "x.list": ["${data.seed}", 2], "x.section": "${paper}", "x.unknown": "${no.such}", "x.log": "${run.dir}/log",
        "x.cache": "${oc.env:HOME}/cache/${data.seed}", "x.missing": "???", "x.nothing": {},
    })])  # fmt: skip
    assert {name: value for name, value in run.config.items() if name.startswith("x.")} == {
        "x.given": "0.15", "x.default": "0.2", "x.list": "[1, 2]", "x.section.delta": "0.15", "x.unknown": "${no.such}",
        # Neither the reader's environment nor, in what follows from it, the run's folder.
        "x.log": "${run.dir}/log", "x.cache": "${oc.env:HOME}/cache/1", "x.missing": "???", "x.nothing": "{}",
    }  # fmt: skip
    assert {"x.given", "x.default", "x.section.delta"} <= run.derived and "data.seed" not in run.derived
    assert "paper.delta" not in run.config  # for all methods: what this one takes of it stands in its own settings


def test_a_threshold_is_shown_as_the_method_took_it_and_what_others_would_take_is_not(make_run) -> None:
    delta = "actor_rollout_ref.actor.policy_loss.delta"
    reads = {delta: "${oc.select:paper.tv_delta,0.2}"}
    paths = [
        make_run("default", "dppo_binary_tv", **reads),
        make_run("experiment", "dppo_binary_tv", **reads, **{"paper.tv_delta": 0.15, "paper.drpo_delta": 0.1}),
        make_run("override", "dppo_binary_tv", **{delta: 0.5}),
    ]
    runs = load_runs(paths)
    assert [run.config[delta] for run in runs] == ["0.2", "0.15", "0.5"]
    assert [group.label for group in group_runs(runs)] == [f"dppo_binary_tv, delta={d}" for d in ("0.2", "0.15", "0.5")]


@pytest.fixture
def two_sources(make_run) -> Path:
    """A run whose validation has two data sources, of 32 samples a problem."""
    folder: Path = make_run("two")
    file = folder / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record, shift in ((records[0], 0.0), (records[-1], 0.1)):
        record["data"] = {
            name: value for name, value in record["data"].items() if not name.startswith("val-core/")
        } | {
            "val-core/aime25/acc/best@32/mean": 0.9, "val-core/aime25/acc/mean@32": 0.2 + shift,
            "val-core/aime24/acc/mean@32": 0.3 + shift,
        }  # fmt: skip
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    entries = [{"step": 0, "data_source": source, "problems": 30} for source in ("aime24", "aime25")]
    (folder / "summary.json").write_text(json.dumps({"validation": entries}))
    return folder


def test_each_data_source_has_its_accuracy(two_sources: Path) -> None:
    (run,) = load_runs([two_sources])
    assert run.problems == {"aime24": 30, "aime25": 30}
    assert [(each.step, each.source, each.value) for each in run.accuracies] == [
        (0, "aime24", 0.3), (0, "aime25", 0.2), (3, "aime24", 0.4), (3, "aime25", pytest.approx(0.3)),
    ]  # fmt: skip
    assert all(each.interval == wilson_interval(each.value, 30) for each in run.accuracies)


def test_an_earlier_summary_names_no_source(make_run, two_sources: Path) -> None:
    earlier = json.dumps({"validation": [{"step": 0, "accuracy": 0.25, "problems": 16, "interval_95": [0.1, 0.5]}]})
    one = make_run("one")
    for folder in (one, two_sources):
        (folder / "summary.json").write_text(earlier)
    alone, two = load_runs([one, two_sources])
    assert alone.problems == {"drpo_verl/arithmetic": 16} and two.problems == {}


def test_two_data_sources_on_the_page(two_sources: Path, tmp_path: Path) -> None:
    write_report([two_sources], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.replace("<wbr>", "")))
    assert "aime24: 0.300 0.167 to 0.479 aime25: 0.200 0.095 to 0.373" in text
    assert all(re.search(rf"\"name\":\"[^\"]+, {source}\"", page) for source in ("aime24", "aime25"))  # of the chart


def test_an_older_run_and_a_lone_file(make_run) -> None:
    folder = make_run("old", complete=False)
    earlier = (folder / "metrics.jsonl").rename(folder / "metrics.1.jsonl")
    make_run("new")
    (run,) = load_runs([earlier])
    assert (run.name, run.method, run.config, run.accuracies) == ("metrics.1", None, {}, [])
    assert run.values("critic/score/mean")[1] == pytest.approx(0.354, abs=1e-3)
    assert run.values("no/such_metric") == {} and run.last("no/such_metric") is None


def test_values_that_are_not_numbers_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step":1,"data":{"x":null}}\n{"step":2,"data":{"x":2.0}}\n')
    (run,) = load_runs([file])
    assert run.values("x") == {2: 2.0} and run.last("x") == 2.0


def test_runs_of_the_same_name_are_told_apart(make_run) -> None:
    runs = load_runs([make_run("a/run"), make_run("b/run"), make_run("b/other")])
    assert [run.name for run in runs] == ["a/run", "b/run", "b/other"]


def test_of_several_those_without_a_step_are_left_out_and_named(make_run, tmp_path: Path) -> None:
    make_run("outputs/b")
    make_run("outputs/a")
    outputs = tmp_path / "outputs"
    (outputs / "eval").mkdir()
    (outputs / "hung").mkdir()
    (outputs / "hung" / "metrics.jsonl").touch()
    (outputs / "report.html").write_text("<html>\n")
    command = ["report", *map(str, sorted(outputs.iterdir())), "--out", str(tmp_path / "report.html")]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "2 runs" in result.stdout, result.output
    warnings = result.stderr.splitlines()
    for warning, (name, why) in zip(
        warnings,
        (("eval", "no metrics file"), ("hung", "has no step"), ("report.html", "is not a metrics file")),
        strict=True,
    ):
        assert warning.startswith("warning: left out: ") and f"outputs/{name}" in warning and why in warning
    with pytest.raises(ValueError, match=r"none of the 2 paths holds a step"):
        load_runs([outputs / "eval", outputs / "hung"])
    with pytest.raises(FileNotFoundError, match=r"tpyo"):
        load_runs([outputs / "a", outputs / "tpyo"])


def test_what_is_no_run_is_refused(tmp_path: Path, make_run) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics.jsonl.*run.dir"):
        load_runs([tmp_path])
    text = tmp_path / "notes.txt"
    for content, problem in (("hello\n", "is not a metrics file"), ("[1]\n", "is not a metrics file"),
                             ('{"step": 1}\n', "is not a metrics file"), ("", "has no step")):  # fmt: skip
        text.write_text(content)
        with pytest.raises(ValueError, match=rf"notes.txt {problem}.*run.dir"):
            load_runs([text])
    run = make_run("twice")
    with pytest.raises(ValueError, match="given twice"):
        load_runs([run, run / "metrics.jsonl"])


def test_a_resumed_run_is_one_run_in_the_report(make_run, tmp_path: Path) -> None:
    folder = make_run("resumed")
    summary = (folder / "summary.json").rename(folder / "summary.1.json")  # the second part is still going on
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").rename(folder / "metrics.1.jsonl")
    (folder / "worst_tokens.jsonl").rename(folder / "worst_tokens.1.jsonl")
    later = [json.loads(line.replace("0.4", "0.5")) | {"step": step} for step, line in ((2, lines[2]), (3, lines[3]))]
    later.append({**later[-1], "step": 4})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in later))
    for given in (folder, folder / "metrics.jsonl"):
        (run,) = load_runs([given])
        assert [step.step for step in run.steps] == [0, 1, 2, 3, 4] and run.trained_steps == 4
        assert run.steps[2].metrics == later[0]["data"] and run.accuracies[0].step == 0
        assert run.problems == {"drpo_verl/arithmetic": 16}, summary
        assert [worst.step for worst in run.worst_tokens] == [1]
    (alone,) = load_runs([folder / "metrics.1.jsonl"])
    assert [step.step for step in alone.steps] == [0, 1, 2, 3]


def test_what_can_not_be_read_is_said_on_the_page_and_by_the_command(make_run, tmp_path: Path) -> None:
    folder = make_run("one")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\n{"step": "four", "data": {}}\n{"step": 5, "da')
    (folder / "summary.json").write_text('{"validation": [')
    (folder / "environment.json").write_text("[]")
    (folder / ".hydra" / "config.yaml").write_text("a: [1\n")
    out = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", str(folder), "--out", str(out)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    wanted = (
        "metrics.jsonl, line 6: step='four' is not a whole number", "metrics.jsonl, line 7: was not written to its end",
        "config.yaml is no configuration (", "summary.json is not JSON (", "environment.json is not a JSON object",
    )  # fmt: skip
    warnings = done.stderr.splitlines()
    assert len(warnings) == len(wanted) and all(line.startswith("warning: left out: ") for line in warnings)
    page = out.read_text()
    for what, warning in zip(wanted, warnings, strict=True):
        assert what in warning and str(escape(what)) in page


@pytest.mark.parametrize(
    ("summary", "planned", "expected"),
    [
        ({"ended": {"steps": 3, "of": 20, "why": "vLLM\nwas killed"}}, 20, Ended(3, 20, "vLLM was killed")),
        ({"ended": {"steps": 0, "of": None, "why": "a reward was NaN"}}, None, Ended(0, None, "a reward was NaN")),
        ({"ended": {}}, 20, Ended(3, 20, "")),
        ({"ended": {"steps": "x", "of": [], "why": None}}, 20, Ended(3, 20, "")),
        ({"ended": None}, 3, None),
        ({"steps": 3}, 20, Ended(3, 20, "")),  # of an earlier version
        (None, 20, Ended(3, 20, "")),  # killed, or still going on
        (None, 3, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_how_a_run_ended(summary, planned, expected, make_run) -> None:
    folder = make_run("one", **{"trainer.total_training_steps": planned})
    (folder / "summary.json").unlink()
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    (run,) = load_runs([folder])
    assert run.ended == expected


def test_the_summary_of_an_earlier_start_does_not_say_how_this_one_ended(make_run) -> None:
    folder = make_run("one", **{"trainer.total_training_steps": 3})
    earlier = {"ended": {"steps": 2, "of": 3, "why": "killed"}, "validation": [{"problems": 16}]}
    (folder / "summary.json").rename(folder / "summary.1.json")
    (folder / "summary.1.json").write_text(json.dumps(earlier))
    (run,) = load_runs([folder])
    assert run.ended is None and run.problems == {"drpo_verl/arithmetic": 16}


def test_metrics_that_are_not_finite_are_known_by_their_steps(make_run) -> None:
    by_step = {1: {"a": 1.0, "b": None}, 2: {"a": None, "b": 2.0}, 3: {"a": None}, 4: {"a": 1.0}}
    (run,) = load_runs([make_run("one", metrics=by_step)])
    assert run.not_finite == {"b": [1], "a": [2, 3]}

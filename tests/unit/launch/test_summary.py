"""What is said and left at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from drpo_verl.launch.summary import display_path, held_out_problems, summarise


def test_a_path_is_shown_even_when_the_current_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "job"
    here.mkdir()
    monkeypatch.chdir(here)
    assert display_path(here / "outputs" / "train.log") == "outputs/train.log"
    here.rmdir()  # what Ray does to a submitted job's
    assert display_path(here / "outputs" / "train.log") == str(here / "outputs" / "train.log")


def held_out(path: Path, **problems: int) -> Path:
    """A parquet with so many problems of each source, each in two rows, as some editions of AIME have them."""
    rows = [
        {"data_source": source.replace("__", "/"), "prompt": [{"role": "user", "content": f"{source} {index}"}]}
        for source, count in problems.items() for index in range(count)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows * 2), path)
    return path


def run_of(folder: Path, val_files: Any, *records: dict[str, float], n: int = 1) -> DictConfig:
    lines = (json.dumps({"step": step, "data": data}) for step, data in enumerate(records))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    rollout = {"val_kwargs": {"n": n}}
    policy_loss = {"loss_mode": "drpo"}
    return OmegaConf.create({
        "data": {"val_files": val_files}, "trainer": {"experiment_name": "test", "logger": ["file"]},
        "actor_rollout_ref": {"rollout": rollout, "actor": {"policy_loss": policy_loss}},
    })  # fmt: skip


def test_one_source_at_the_end_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = held_out(tmp_path / "val.parquet", drpo_verl__arithmetic=256)
    metrics = {"val-core/drpo_verl/arithmetic/acc/mean@1": 0.34765625}
    config = run_of(tmp_path, str(file), metrics, {"critic/score/mean": 0.5})
    summarise(config, tmp_path, Console(width=200))
    expected = "held-out accuracy after step   0: 0.348  (95 % interval 0.292 to 0.408, 256 problems)"
    assert expected in capsys.readouterr().out.splitlines()
    (entry,) = json.loads((tmp_path / "summary.json").read_text())["validation"]
    assert entry["interval_95"] == pytest.approx([0.292, 0.408], abs=5e-4)
    del entry["interval_95"]
    assert entry == {"step": 0, "data_source": "drpo_verl/arithmetic", "accuracy": 0.34765625, "problems": 256}


def test_a_resumed_run_issummarised_from_its_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = held_out(tmp_path / "val.parquet", math=100)
    accuracy = "val-core/math/acc/mean@1"
    config = run_of(
        tmp_path, str(file), {accuracy: 0.1}, *({"critic/score/mean": 0.5, accuracy: step / 10} for step in (1, 2, 3))
    )
    (tmp_path / "metrics.jsonl").rename(tmp_path / "metrics.1.jsonl")
    lines = ({"step": step, "data": {"critic/score/mean": 0.5, accuracy: 0.9}} for step in (3, 4))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5')
    summarise(config, tmp_path, Console(width=200))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(each["step"], each["accuracy"]) for each in summary["validation"]] == [
        (0, 0.1), (1, 0.1), (2, 0.2), (3, 0.9), (4, 0.9)
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "held-out accuracy after step   0: 0.100" in said and "metrics.jsonl, line 3: was not written" in said


@pytest.mark.parametrize(
    ("method", "title"), [("cispo", "test: cispo"), (None, "test: drpo, delta 0.1")]
)  # fmt: skip
def test_the_picture_says_the_method_that_was_chosen_and_what_the_engines_compute_in(
    method: str | None, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr("matplotlib.figure.Figure.suptitle", lambda self, text: titles.append(text))
    config = run_of(tmp_path, [], {"critic/score/mean": 0.5}, {"critic/score/mean": 0.5})
    settings = config.actor_rollout_ref.actor.policy_loss
    quantized = {"dtype": "float32", "engine_kwargs": {"vllm": {"quantization": "emulated_fp8"}}}
    OmegaConf.update(config, "actor_rollout_ref.rollout", quantized, force_add=True)
    if method is None:
        settings.delta = 0.1
    else:
        config.run = {"method": method}
        settings.loss_mode = "pg_tis"
    summarise(config, tmp_path, Console(width=200))
    assert titles == [f"{title}\nrollout engine in fp32, weights in fp8 and back; trainer in bf16"]
    assert json.loads((tmp_path / "summary.json").read_text())["method"] == (method or "drpo")


def test_two_sources_with_many_samples_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        str(held_out(tmp_path / "a.parquet", aime24=30)),
        str(held_out(tmp_path / "b.parquet", aime25=20, aime24=0)),
    ]
    records = [
        {"val-core/aime25/acc/best@32/mean": 0.9, "val-core/aime25/acc/mean@32": 0.2,
         "val-core/aime24/acc/mean@32": 0.3, "val-core/aime24/acc/best@32/mean": 0.9},
        {"critic/score/mean": 0.5, "val-core/aime24/acc/mean@32": 0.4, "val-core/aime25/acc/mean@32": 0.25},
    ]  # fmt: skip
    summarise(run_of(tmp_path, files, *records, n=32), tmp_path, Console(width=200))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("held-out")]
    # Over 30 problems and not 960 samples, for which Wilson's interval is 0.272 to 0.330.
    assert said == [
        "held-out accuracy on aime24 after step   0: 0.300  (95 % interval 0.167 to 0.479, 30 problems)",
        "held-out accuracy on aime25 after step   0: 0.200  (95 % interval 0.081 to 0.416, 20 problems)",
        "held-out accuracy on aime24 after step   1: 0.400  (95 % interval 0.246 to 0.577, 30 problems)",
        "held-out accuracy on aime25 after step   1: 0.250  (95 % interval 0.112 to 0.469, 20 problems)",
    ]
    entries = json.loads((tmp_path / "summary.json").read_text())["validation"]
    assert [(each["step"], each["data_source"], each["accuracy"], each["problems"]) for each in entries] == [
        (0, "aime24", 0.3, 30), (0, "aime25", 0.2, 20), (1, "aime24", 0.4, 30), (1, "aime25", 0.25, 20),
    ]  # fmt: skip


def testheld_out_problems_that_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    file = held_out(tmp_path / "val.parquet", aime24=3)
    config = run_of(tmp_path, [str(file)])
    assert held_out_problems(config) == {"aime24": 3}
    config.data.val_max_samples = 2  # verl draws them
    assert held_out_problems(config) == {}
    assert held_out_problems(run_of(tmp_path, [str(file), "/nowhere/val.parquet"])) == {}
    pq.write_table(pa.table({"question": ["a"]}), file)
    assert held_out_problems(run_of(tmp_path, str(file))) == {}

"""Alerts in verl's own logger, and what an offline wandb run keeps of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import verl.utils.tracking
from verl.utils.tracking import Tracking
from wandb_file import history, of_type, records, table

from drpo_verl.adapters.tracking import WORST_TOKENS
from drpo_verl.run_folder import worst_tokens
from drpo_verl.run_folder.steps import read_steps
from drpo_verl.run_folder.worst_tokens import WorstToken

STEPS = read_steps(Path(__file__).parents[1] / "data" / "dppo_topk_tv.jsonl")
CONFIG: dict[str, Any] = {
    "trainer": {"project_name": "drpo-verl"},
    "actor_rollout_ref": {"actor": {"policy_loss": {"loss_mode": "dppo_topk_tv", "delta": 0.05}}},
    "alerts": {
        "kl": {"metric": "mismatch/kl", "above": 0.0045, "steps": 1, "advice": "Look at it."},
        "score": {"metric": "critic/score/mean", "above": 2},
    },
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """wandb without a server, in a folder; its service ends with the test."""
    import wandb

    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # forget settings read before
    yield tmp_path / "wandb"
    wandb.teardown()


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "drpo_verl"]


def test_an_offline_run_read_back_has_metrics_configuration_and_alert(
    offline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = Tracking("drpo-verl", "a_run", ["console", "wandb"], config=CONFIG)
    with caplog.at_level(logging.WARNING, logger="drpo_verl"):
        for step in STEPS:
            tracking.log(data=step.metrics, step=step.step)
    tracking.finish()

    run = records(offline)
    assert history(run) == {step.step: step.metrics for step in STEPS}
    (entry,) = of_type("run", run)
    assert (entry["project"], entry["display_name"]) == ("drpo-verl", "a_run")
    assert entry["config"]["update"]["actor_rollout_ref"] == CONFIG["actor_rollout_ref"]
    (alert,) = of_type("alert", run)
    assert (alert["title"], alert["level"]) == ("mismatch/kl above 0.0045", "WARN")
    assert alert["text"] == "step 2: mismatch/kl is 0.00498, above 0.0045 (alerts.kl). Look at it."
    assert _warnings(caplog) == [f"drpo-verl: {alert['text']}"]


def test_a_loss_that_is_not_finite_is_an_alert_at_once_and_read_back(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    tracking = Tracking("drpo-verl", "a_run", ["file", "wandb"], config={"trainer": {}})
    with caplog.at_level(logging.WARNING, logger="drpo_verl"):
        for step, (loss, norm) in enumerate([(0.1, 1.0), (math.nan, np.float32("inf")), (math.nan, -math.inf)], 1):
            tracking.log(data={"actor/pg_loss": loss, "actor/grad_norm": norm}, step=step)
    tracking.finish()
    (alert,) = of_type("alert", records(offline))
    assert (alert["title"], alert["level"]) == ("actor/pg_loss is NaN", "ERROR")
    assert alert["text"].startswith("step 2: actor/pg_loss is NaN, actor/grad_norm is +inf. What is not finite")
    assert _warnings(caplog) == [f"drpo-verl: {alert['text']}"]

    text = (tmp_path / "metrics.jsonl").read_text()
    assert "nan" not in text.lower() and "inf" not in text.lower()  # neither is JSON
    read = [step.metrics for step in read_steps(tmp_path / "metrics.jsonl")]
    assert read[0] == {"actor/pg_loss": 0.1, "actor/grad_norm": 1.0}
    assert all(math.isnan(value) for metrics in read[1:] for value in metrics.values()) and len(read) == 3


def test_without_a_wandb_run_an_alert_is_a_warning_only(caplog: pytest.LogCaptureFixture) -> None:
    tracking = Tracking("drpo-verl", "a_run", "console", config=CONFIG)
    with caplog.at_level(logging.WARNING, logger="drpo_verl"):
        for step in STEPS:
            tracking.log(data={**step.metrics, "a/table": object()}, step=step.step, backend=["console"])
    assert [message[:30] for message in _warnings(caplog)] == ["drpo-verl: step 2: mismatch/kl"]


@pytest.mark.parametrize("config", [None, {}, {"trainer": {}}])
def test_without_the_section_the_logger_of_verl_is_as_it_was(config: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert verl.utils.tracking.Tracking is Tracking and Tracking.__mro__[1].__module__ == "verl.utils.tracking"
    tracking = Tracking("drpo-verl", "a_run", config=config)
    tracking.log({"mismatch/kl": 100.0}, 1)
    assert list(tracking.logger) == ["console"] and not _warnings(caplog)


def test_worst_tokens_are_a_table_that_grows(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "worst_tokens.jsonl"
    monkeypatch.setenv(worst_tokens.PATH_VARIABLE, str(path))
    tracking = Tracking("drpo-verl", "a_run", ["wandb"], config=CONFIG)
    tracking.log(data={"a": 1.0}, step=0)  # a validation before training
    lines = [WorstToken(step, 0.25, 0.5, 0.75, -1.0, 2, f"token {step}", "12\u2028+3") for step in (1, 2)]
    for line in lines:
        worst_tokens.append(line, path)
        with path.open("ab") as file:
            file.write(b"no line of the table\n")
        tracking.log(data={"a": 1.0}, step=line.step)
    tracking.finish()
    assert len(_warnings(caplog)) == 2 and "line 2: is not JSON" in _warnings(caplog)[0]

    assert history(records(offline)) == {step: {"a": 1} for step in (0, 1, 2)}
    assert sorted(table(offline, WORST_TOKENS)) == [list(astuple(line)) for line in lines]

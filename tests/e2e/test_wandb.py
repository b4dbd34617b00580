"""A real run in wandb: what was logged, and what was announced."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

from stack import Run
from wandb_file import history, of_type, records, table

from drpo_verl.adapters.tracking import WORST_TOKENS
from drpo_verl.configuration.method import METHOD
from drpo_verl.metrics.catalogue import SECTIONS
from drpo_verl.run_folder import worst_tokens
from drpo_verl.run_folder.steps import read_steps

# Not in every run: a method or a trainer decides.
OPTIONAL = {
    "actor/entropy", "trust_region/delta", "actor/loss_scale", "actor/skipped_update_frac",
    "trust_region/anchor_abs_prob_diff_mean", "trust_region/anchor_abs_prob_diff_max",
    "trust_region/sequence_masked_frac", "policy_drift/anchor_abs_prob_diff_mean",
}  # fmt: skip


def test_every_metric_of_every_step_is_in_wandb(exact_run: Run) -> None:
    run = records(exact_run.folder / "wandb")
    logged = {step.step: step.metrics for step in read_steps(exact_run.folder / "metrics.jsonl")}
    assert list(logged) == [1, 2, 3]
    assert history(run) == logged


def test_the_worst_tokens_are_a_table_in_wandb(exact_run: Run) -> None:
    lines = worst_tokens.read(exact_run.folder / "worst_tokens.jsonl")
    assert len(lines) == 3
    assert sorted(table(exact_run.folder / "wandb", WORST_TOKENS)) == sorted([list(astuple(line)) for line in lines])


def test_project_name_method_and_configuration_are_in_wandb(exact_run: Run) -> None:
    (entry,) = of_type("run", records(exact_run.folder / "wandb"))
    assert (entry["project"], entry["display_name"]) == ("drpo-verl", exact_run.folder.name)
    value = entry["config"]["update"]
    for part in METHOD.split("."):
        value = value[part]
    assert value == "drpo"
    policy_loss = entry["config"]["update"]["actor_rollout_ref"]["actor"]["policy_loss"]
    assert policy_loss["delta"] == 0.1 and policy_loss["bypass_mode"] is True


def test_an_alert_is_in_wandb_on_the_terminal_and_in_the_log(exact_run: Run) -> None:
    (alert,) = of_type("alert", records(exact_run.folder / "wandb"))
    assert alert["title"] == "critic/score/mean above 0" and alert["level"] == "WARN"
    assert alert["text"].startswith("step 1: critic/score/mean is ")
    assert f"warning: {alert['text']}" in exact_run.output
    assert alert["text"] in (exact_run.folder / "train.log").read_text()


def test_the_folder_of_wandb_is_in_that_of_the_run_and_pointed_to(exact_run: Run) -> None:
    (folder,) = (exact_run.folder / "wandb").glob("offline-run-*")
    assert not Path("wandb", folder.name).exists()
    assert "Traceback" not in exact_run.output  # wandb's service ends with Ray's processes, and says so
    assert f"wandb: {exact_run.folder / 'wandb' / 'latest-run'}" in exact_run.output


def test_what_is_described_is_logged(two_rank_bf16_run: Run) -> None:
    logged = {name for step in two_rank_bf16_run.steps for name in step.metrics}
    described = {name for section in SECTIONS for name in section.names if "<" not in name}
    # A bin of mu without a token has no mismatch.
    expected = {name for name in described - OPTIONAL if "_by_prob/abs_prob_diff_" not in name}
    assert expected <= logged, expected - logged

"""``drpo-verl check`` as it is typed, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from configurations import ASYNC, CPU, DENSE, EXPERTS, ROLLOUT
from typer.testing import CliRunner

from drpo_verl.check import rules
from drpo_verl.check.command import check_run
from drpo_verl.cli import app

DOCS = Path(__file__).parents[3] / "docs" / "check.md"


def test_it_shows_findings_memory_and_facts_and_exits_with_1() -> None:
    result = CliRunner().invoke(app, ["check", *DENSE, f"{ROLLOUT}.top_p=0.9"], env={"COLUMNS": "160"})
    assert result.exit_code == 1
    for text in ("rollout.top_p=0.9", "Set it to 1.0.", "sampling_distribution", "optimiser states", "KV cache",
                 "64 prompts x 8 responses = 512 samples", "would not run as meant: 1 error"):  # fmt: skip
        assert text in result.output, result.output


def test_a_valid_run_exits_with_0() -> None:
    result = CliRunner().invoke(app, ["check", *CPU])
    assert result.exit_code == 0 and "can run: 0 errors" in result.output, result.output


def test_json_is_all_that_is_printed() -> None:
    result = CliRunner().invoke(app, ["check", "--json", *EXPERTS])
    whole = json.loads(result.stdout)
    assert whole["ok"] and whole["memory"]["card_gib"] == 80
    assert whole["facts"]["optimiser steps per rollout"] == "8"
    assert {"level", "rule", "setting", "value", "message", "remedy"} == set(whole["findings"][0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=qwen", "Could not find 'experiment/qwen'"),
        ("actor_rollout_ref.actor.ppo_minibatch_size=4", "ppo_minibatch_size"),
        ("method=", "method"),
        ("data.train_batch_size=[1", "data.train_batch_size=[1"),
    ],
)
def test_what_hydra_can_not_compose_is_a_finding(override: str, message: str) -> None:
    result = check_run(["experiment=cpu_tiny", override])
    assert not result.ok and [each.rule for each in result.findings] == ["composition"]
    assert message in str(result.findings[0])


@pytest.mark.parametrize(
    ("base", "overrides", "staleness", "updates"),
    [
        (DENSE, [], "0 versions: the weights that sample are 0 to 3 optimiser steps old", "4"),
        (DENSE, ["actor_rollout_ref.actor.ppo_mini_batch_size=64"], "fully on-policy", "1"),
        (
            DENSE,
            ["trainer.v1.trainer_mode=colocate_async"],
            "about 1 to 2 versions of 4 optimiser steps, at most 8",
            "4",
        ),
        (ASYNC, ["trainer.v1.sampler.max_off_policy_threshold=null"], "without a bound", "4"),
    ],
)
def test_what_it_comes_to(base: tuple[str, ...], overrides: list[str], staleness: str, updates: str) -> None:
    facts = check_run([*base, *overrides]).facts
    assert facts is not None
    assert staleness in facts["expected staleness"] and facts["optimiser steps per rollout"] == updates


def test_neither_vllm_nor_ray_is_started_and_a_gpu_is_not_needed() -> None:
    # Without VERL_PLATFORM: as on the laptop of somebody with a cluster.
    code = (
        "import sys; from drpo_verl.check.command import check_run; result = check_run(sys.argv[1:]);"
        "import ray; print(result.count()); assert result.ok and not ray.is_initialized();"
        "assert 'vllm' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    lora = ["actor_rollout_ref.model.lora_rank=32"]
    run = subprocess.run(
        [sys.executable, "-c", code, *DENSE, *lora],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_the_documentation_has_every_rule() -> None:
    rows = [f"| `{rule.name}` | {rule.about} |" for rule in rules().values()]
    missing = [row for row in rows if row not in DOCS.read_text()]
    assert not missing, "docs/check.md is to have:\n" + "\n".join(rows)
    documented = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert documented == rows

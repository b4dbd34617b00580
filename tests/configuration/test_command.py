"""``drpo-verl check`` as it is typed, and what it leaves alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from configurations import ASYNC, CPU, DENSE, EXPERTS, ROLLOUT
from typer.testing import CliRunner

from drpo_verl import check, evidence
from drpo_verl.cli import app
from drpo_verl.preflight import RULES
from drpo_verl.preflight.command import check_command

INT3 = evidence.Evidence("fp32, weights in int3 and back", "fp32", 2, 0.06, 30, {"mu": {0.2: "hurts"}, "pi_old": {}})
DOCS = Path(__file__).parents[2] / "docs" / "check.md"


def test_it_shows_findings_memory_and_facts_and_exits_with_1() -> None:
    result = CliRunner().invoke(app, ["check", *DENSE, f"{ROLLOUT}.top_p=0.9"], env={"COLUMNS": "160"})
    assert result.exit_code == 1
    for text in ("rollout.top_p=0.9", "Set it to 1.0.", "sampling_distribution", "optimiser states", "KV cache",
                 "64 prompts x 8 responses = 512 samples", "would not run as meant: 1 error"):  # fmt: skip
        assert text in result.output, result.output


def test_settings_stay_in_one_piece_in_a_narrow_terminal() -> None:
    overrides = [f"{ROLLOUT}.top_p=0.9", "precision=cpu_fp8_kv", "actor_rollout_ref.actor.policy_loss.delta=0.05"]
    result = CliRunner().invoke(app, ["check", *CPU, *overrides], env={"COLUMNS": "80"})
    shown = result.output.split("Memory of one card")[0]
    findings = check_command([*CPU, *overrides]).findings
    assert len(findings) > 1
    for finding in findings:
        assert finding.place in shown and f"({finding.rule})" in shown
        for override in " ".join(finding.overrides).split():
            name, _, value = override.lstrip("+").partition("=")
            assert override in shown or (name == finding.setting and f"to {value}" in shown), override
    prose = [line for line in shown.splitlines() if line.startswith(" ") and len(line.split()) > 1]
    assert len(prose) > 3 and all(len(line) <= 80 for line in prose)


def test_a_valid_run_exits_with_0() -> None:
    result = CliRunner().invoke(app, ["check", *CPU])
    assert result.exit_code == 0 and "can run: 0 errors" in result.output, result.output


def test_json_is_all_that_is_printed() -> None:
    result = CliRunner().invoke(app, ["check", "--json", *EXPERTS])
    whole = json.loads(result.stdout)
    assert whole["ok"] and whole["memory"]["card_gib"] == 80
    assert whole["facts"]["optimiser steps per rollout"] == "8"
    assert whole["facts"]["precision"].startswith("rollout in ")
    assert {"level", "rule", "setting", "value", "message", "remedy", "overrides"} == set(whole["findings"][0])


@pytest.mark.parametrize(
    ("override", "setting", "message"),
    [
        ("experiment=drpo/qwen3_4", "experiment",
         r"='drpo/qwen3_4' does not exist\. The choices are: cpu_smollm2, .*, drpo/r1d_1_5b\. "
         r"Did you mean drpo/qwen3_4b, "),
        ("method=drpoo", "method", r"The choices are: cispo, .*, surrogate, .*\. Did you mean drpo, "),
        ("method=", "method", r"''.*Choose one of them\."),
        ("experiment=null", "experiment", r"'null' does not exist\. The choices are: cpu_smollm2"),
        # A choice of another group; verl has one that is called data.
        ("data=dapo_math", "data", r"Did you mean dataset=dapo_math\?"),
        # A folder beside a file of its name holds what that choice picks from, which is none.
        ("precision=fp8", "precision",
         r"are: bf16, cpu_bf16_rollout, cpu_fp32, .*, fp8_e2e, fp8_rollout\. Did you mean fp8_e2e"),
        ("actor_rollout_ref.actor.polcy_loss.delta=1", "actor_rollout_ref.actor.polcy_loss.delta",
         r"=1 is not a setting\. Did you mean actor_rollout_ref\.actor\.policy_loss\.delta"),
        ("trainer.total_trainings_steps=3", "trainer.total_trainings_steps",
         r"=3 is not a setting\. Did you mean trainer\.total_training_steps"),
        ("optim.lr=1", "optim.lr", r"Did you mean actor_rollout_ref\.actor\.optim\.lr or critic\.optim\.lr\?"),
        ("methd=drpo", "methd", r"Did you mean method\?"),
        ("xyzzy.y=3", "xyzzy.y", r"A new one is added with \+xyzzy\.y=3"),
        ("+method=spo", "+method", r"is set already\. Leave out the \+: method=spo"),
        ("+trainer.nnodes=2", "+trainer.nnodes", r"is set already\. Leave out the \+: trainer\.nnodes=2"),
        ("trainer=3", "trainer", r"=3 is not a section\. Set what is in it one by one: trainer\.SETTING=VALUE"),
        ("actor_rollout_ref.model=qwen", "actor_rollout_ref.model", r"='qwen' is not a section"),
        ("cpu_tiny", "cpu_tiny", r"can not be read as name=value\. Did you mean experiment=cpu_tiny\?"),
        ("data.train_batch_size=[1", "data.train_batch_size=[1", r"read as name=value\. Is a .*bracket missing"),
        ("~alerts.kll", "alerts.kll", r"is not a setting\. Did you mean alerts\.kl\?"),
        ("experiment=cpu_tiny,cpu_tiny_moe", "experiment", r"='cpu_tiny,cpu_tiny_moe' does not exist"),
    ],
)  # fmt: skip
def test_what_can_not_be_composed_is_named_with_what_there_is(override: str, setting: str, message: str) -> None:
    (finding,) = check_command([override, "data.seed=1"]).findings
    assert (finding.level, finding.rule, finding.setting) == ("error", "composition", setting)
    assert re.search(message, str(finding)), str(finding)
    assert "search path" not in str(finding) and "\n" not in str(finding)


@pytest.mark.parametrize(
    ("method", "misspelt", "suggestion"),
    [
        ("drpo", "dleta", "Did you mean {0}.delta?"),
        ("drpo", "delta_lo", "Did you mean {0}.delta_low"),
        ("drpo", "region_dleta", "A new one is added with +{0}.region_dleta=0.3"),
        ("mask_drpo", "region_dleta", "Did you mean {0}.region_delta?"),
        ("cppo", "dleta_b", "Did you mean {0}.delta_b"),
        ("grpo", "dleta", "A new one is added with +{0}.dleta=0.3"),
    ],
)
def test_only_what_the_method_reads_is_suggested(method: str, misspelt: str, suggestion: str) -> None:
    section = "actor_rollout_ref.actor.policy_loss"
    (finding,) = check_command(["experiment=cpu_tiny", f"method={method}", f"{section}.{misspelt}=0.3"]).findings
    assert finding.remedy.startswith(suggestion.format(section)), finding.remedy
    added = [str(each) for each in check_command([*CPU, f"method={method}", f"+{section}.{misspelt}=0.3"]).findings]
    (refused,) = [each for each in added if misspelt in each]
    assert ("Did you mean" in refused) == ("Did you mean" in suggestion), refused


def test_a_choice_that_needs_another_backend_says_which() -> None:
    (finding,) = check_command(["experiment=drpo/qwen3_4b", "precision=fp8_e2e"]).findings
    assert str(finding) == "precision='fp8_e2e' does not go with backend=fsdp2. It needs backend=cpu or megatron."


def test_without_a_run_it_says_what_it_is_for() -> None:
    assert "drpo-verl check experiment=cpu_tiny" in CliRunner().invoke(app, ["check"]).output


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
    facts = check_command([*base, *overrides]).facts
    assert facts is not None
    assert staleness in facts["expected staleness"] and facts["optimiser steps per rollout"] == updates


def test_methods_of_one_loss_mode_go_by_their_own_names() -> None:
    for method in ("cispo", "pg_tis"):
        facts = check_command([*CPU, f"method={method}"]).facts
        assert facts is not None and facts["method"] == method
        assert facts["cards"].startswith("1 worker slot (CPU), ") and facts["update"].endswith("in 1 micro-batch of 48")


def test_the_steps_that_the_epochs_come_to() -> None:
    facts = check_command([*CPU, "prepare.data.n_train=100", "trainer.total_epochs=3", "trainer.save_freq=5",
                           "trainer.test_freq=5", "trainer.total_training_steps=null"]).facts  # fmt: skip
    assert facts is not None and facts["data"] == "100 rows, 4 rollouts an epoch, at most 3 epochs"
    assert facts["whole run"].startswith("12 steps, 24 optimiser steps")


def test_what_is_no_number_comes_to_nothing() -> None:
    result = check_command([*DENSE, "data.train_batch_size=0"])
    assert (result.ok, result.facts, result.memory) == (False, None, None)


def test_neither_vllm_nor_ray_is_started_and_a_gpu_is_not_needed() -> None:
    # Without VERL_PLATFORM: as on the laptop of somebody with a cluster.
    code = (
        "import sys; from drpo_verl.preflight.command import check_command; result = check_command(sys.argv[1:]);"
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
    rules = [*check.RULES, *(rule for rule in RULES if rule not in check.RULES)]
    rows = [f"| `{rule.name}` | {rule.about} |" for rule in rules]
    missing = [row for row in rows if row not in DOCS.read_text()]
    assert not missing, "docs/check.md is to have:\n" + "\n".join(rows)
    documented = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert documented == rows


def test_it_says_what_the_study_has_found_with_the_numbers_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "all_evidence", lambda: (INT3,))
    result = check_command([*CPU, "precision=cpu_int3_weights"])
    assert result.ok and result.facts is not None and result.facts["study"] == INT3.sentence()
    for other in ("precision=cpu_int4_weights", "actor_rollout_ref.actor.ppo_epochs=8"):
        facts = check_command([*CPU, "precision=cpu_int3_weights", other]).facts
        assert facts is not None and "study" not in facts

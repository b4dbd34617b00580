"""``+method=<name>`` is all that a user of verl adds: composed from verl's own configuration, checked before Ray."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import verl.trainer
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

from drpo_verl.adapters.config import TrustRegionLossConfig
from drpo_verl.check.rule import Rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.search_path import config_dir
from drpo_verl.metrics.alerts import parse_alerts
from drpo_verl.preflight import check_run

METHODS = sorted(path.stem for path in (config_dir() / "method").glob("*.yaml"))
VERL_CONFIG = Path(verl.trainer.__file__).parent / "config"
# What any user of verl has to set.
USERS_OWN = ["actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
             "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1"]  # fmt: skip


def _compose(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(VERL_CONFIG), version_base=None):  # verl's own, without any hydra.searchpath
        return compose("ppo_trainer", [*USERS_OWN, *overrides])


def _validate(config: DictConfig) -> None:
    validate_config(config, need_reference_policy(config), need_critic(config))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_one_override(method: str) -> None:
    config = _compose(f"+method={method}")
    _validate(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert isinstance(actor.policy_loss, TrustRegionLossConfig)
    assert actor.loss_agg_mode == "seq-mean-token-sum-norm" and actor.loss_scale_factor == 512
    assert config.algorithm.rollout_correction.bypass_mode
    decoupled = method in ("minirl", "drpo_decoupled")
    assert actor.policy_loss.anchor == ("recomputed" if decoupled else "rollout")
    assert config.algorithm.adv_estimator == "grpo"
    assert not config.algorithm.norm_adv_by_std_in_grpo
    rollout = config.actor_rollout_ref.rollout
    assert rollout.calculate_log_probs and (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, -1)


@pytest.mark.parametrize("method", ["drpo", "dppo_binary_tv", "dppo_binary_kl", "mask_drpo", "spo", "grpo"])
def test_the_anchor_is_another_override_beside_the_method(method: str) -> None:
    config = _compose(f"+method={method}", "anchor=recomputed")
    _validate(config)
    assert config.run.method == f"{method}_decoupled"  # no run resumes one with another anchor
    settings = omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss
    assert settings.loss_mode == method and settings.objective().recomputed_anchor
    # Where each of several updates between two weight syncs has samples of its own, verl keeps the weights of pi_old.
    asynchronous = _compose(f"+method={method}", "anchor=recomputed", "trainer.v1.trainer_mode=separate_async")
    assert not asynchronous.algorithm.rollout_correction.bypass_mode


def test_a_threshold_is_an_ordinary_override() -> None:
    config = _compose("+method=drpo", "actor_rollout_ref.actor.policy_loss.delta=0.5", "data.max_response_length=64")
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.policy_loss.region().delta_high == 0.5 and actor.loss_scale_factor == 64


def test_without_the_override_verl_is_as_it_was() -> None:
    actor = omega_conf_to_dataclass(_compose().actor_rollout_ref.actor)
    assert (
        type(actor.policy_loss).__module__ == "verl.workers.config.actor" and actor.policy_loss.loss_mode == "vanilla"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor_rollout_ref.actor.policy_loss.delta=0", r"delta=0 must be a number above 0"),
        (
            "+actor_rollout_ref.actor.policy_loss.dleta=1",
            r"dleta is no setting of a method\. Did you mean .*loss\.delta",
        ),
        ("actor_rollout_ref.rollout.calculate_log_probs=false", r"calculate_log_probs=False.*Set it to True"),
        ("algorithm.rollout_correction.bypass_mode=false", r"bypass_mode=False.*Set it to True"),
    ],
)
def test_bad_input_is_refused_by_the_validation_of_verl(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _validate(_compose("+method=drpo", override))


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = ["actor_rollout_ref.actor.policy_loss.delta=0", "actor_rollout_ref.rollout.top_p=0.9"]
    with pytest.raises(ValueError, match=r"(?s)2 settings can not work.*delta=0 must be.*top_p=0\.9, but"):
        _validate(_compose("+method=drpo", *wrong))


@pytest.mark.parametrize(
    ("override", "rule", "level"),
    [
        ("actor_rollout_ref.actor.optim.lr=1.0", "learning_rate", "error"),
        ("data.train_batch_size=257 actor_rollout_ref.actor.use_dynamic_bsz=true", "mini_batch", "warning"),
        ("actor_rollout_ref.rollout.max_num_batched_tokens=16", "scheduler", "error"),
        ("actor_rollout_ref.rollout.gpu_memory_utilization=1.5", "memory", "error"),
        ("actor_rollout_ref.actor.entropy_coeff=0.5", "entropy", "warning"),
        ("trainer.total_epochs=half", "numbers", "error"),
    ],
)
def test_an_opinion_about_a_run_stops_no_run_of_main_ppo(override: str, rule: str, level: str) -> None:
    config = _compose("+method=drpo", *override.split())
    _validate(config)
    found = check_run(RunConfig(config))
    assert (level, rule) in {(each.level, each.rule) for each in found}, [str(each) for each in found]


def test_warnings_are_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def advise(run: RunConfig) -> list[Finding]:
        return [run.warning("trainer.nnodes", "is odd.")]

    monkeypatch.setattr("drpo_verl.check.RULES", (Rule("advise", "", advise),))
    _validate(_compose("+method=drpo"))
    assert "trainer.nnodes=1 is odd." in caplog.text


def test_the_remedy_for_a_loss_mode_by_itself_works() -> None:
    with pytest.raises(ValueError, match=r"loss_mode='drpo' was set without its configuration\. Use \+method=drpo"):
        _validate(_compose("actor_rollout_ref.actor.policy_loss.loss_mode=drpo"))
    _validate(_compose("+method=drpo"))


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        ("drpo", "trainer.use_v1=false", r"trainer\.use_v1=False, but.*legacy trainer.*Set it to True"),
        ("drpo", "algorithm.rollout_correction.rollout_rs=token_k1", r"rollout_rs='token_k1'.*Set it to null"),
        ("grpo", "algorithm.rollout_correction.rollout_is=token", r"rollout_is='token'.*nothing in bypass mode"),
        ("drpo", "distillation.enabled=true", r"distillation\.enabled=True.*Set it to False"),
        ("drpo", "actor_rollout_ref.rollout.top_p=0.9", r"top_p=0\.9.*another distribution.*Set it to 1\.0"),
        ("drpo", "actor_rollout_ref.rollout.top_k=50", r"top_k=50.*another distribution.*Set it to -1"),
        ("drpo", "actor_rollout_ref.rollout.logprobs_mode=raw_logprobs", r"='raw_logprobs'.*processed_logprobs"),
        ("minirl", "actor_rollout_ref.actor.policy_loss.delta=0.1", r"delta=0\.1 has no effect beside delta_low"),
        ("dppo_topk_tv", "actor_rollout_ref.rollout.custom.drpo_verl.top_k=5", r"top_k=5, but.*top_k=20"),
        ("dppo_topk_tv", "actor_rollout_ref.actor.fsdp_config.pad_to_length=true", r"pad_to_length=True"),
        ("minirl", "algorithm.rollout_correction.rollout_is=token", r"rollout_is='token'.*nothing in bypass mode"),
        ("minirl", "anchor=rollout", r"anchor='rollout', but.*measures from a recomputed pi_old.*Set it to recomputed"),
        ("surrogate", "anchor=recomputed", r"anchor='recomputed' has no effect"),
        ("dppo_topk_tv", "anchor=recomputed", r"anchor='recomputed', but.*has the Top-K distribution of the rollout"),
        ("dppo_topk_tv", "actor_rollout_ref.rollout.name=sglang", r"rollout\.name='sglang'.*come from vLLM"),
        ("drpo_topk", "actor_rollout_ref.model.use_fused_kernels=true", r"use_fused_kernels=True.*Set it to False"),
        ("drpo_topk", "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2", r"parallel_size=2.*Set it to 1"),
        ("drpo_topk", "actor_rollout_ref.actor.policy_loss.top_k=0", r"top_k=0 must be a number above 0"),
    ],
)
def test_what_a_method_can_not_work_with_is_refused(method: str, override: str, message: str) -> None:
    with pytest.raises((ValueError, InstantiationException)) as error:
        _validate(_compose(f"+method={method}", override))
    assert re.search(message, str(error.value.__cause__ or error.value))


@pytest.mark.parametrize(("mode", "message"), [("drpo", r"Use \+method=drpo"), ("drppo", "is not a loss mode; known:")])
def test_a_loss_mode_by_itself_is_refused_too(mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _validate(_compose(f"actor_rollout_ref.actor.policy_loss.loss_mode={mode}"))


def test_alerts_are_one_override_too_and_checked() -> None:
    config = _compose("+method=drpo", "+alerts=default", "alerts.kl.above=0.05", "~alerts.entropy")
    _validate(config)
    assert {alert.name: alert.above for alert in parse_alerts(config.alerts)} == {"mismatch": 0.1, "kl": 0.05}
    with pytest.raises(ValueError, match=r"alerts\.kl\.steps=0 must be a whole number of at least 1"):
        _validate(_compose("+method=drpo", "+alerts=default", "alerts.kl.steps=0"))


@pytest.mark.parametrize(
    ("overrides", "plugins", "message"),
    [
        (["+method=drpo", "actor_rollout_ref.actor.policy_loss.delta=-1"], "auto", "delta=-1 must be a number above 0"),
        (["+method=drop"], "auto", "Could not find 'method/drop'"),
        # Switched off, the plugin can not say it; the loss's configuration does.
        (["+method=drpo"], "none", "VERL_USE_EXTERNAL_PLUGINS='none' keeps verl from loading drpo-verl"),
    ],
)
def test_from_the_command_line_before_ray_starts(
    overrides: list[str], plugins: str, message: str, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *overrides, *USERS_OWN],
        cwd=tmp_path, env=os.environ | {"VERL_USE_EXTERNAL_PLUGINS": plugins, "VERL_PLATFORM": ""},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert run.returncode != 0
    assert message in run.stderr
    assert "ray init" not in run.stdout and "Started a local Ray instance" not in run.stderr


def test_sources_that_are_on_the_path_and_not_installed_have_the_groups_too() -> None:
    program = (
        "import sys\n"
        "sys.modules['hydra_plugins.drpo_verl_search_path'] = None  # which only an installation brings\n"
        "import verl, drpo_verl.plugin\n"
        "from hydra import compose, initialize_config_dir\n"
        f"with initialize_config_dir({str(VERL_CONFIG)!r}, version_base=None):\n"
        "    print(compose('ppo_trainer', ['+method=spo']).actor_rollout_ref.actor.policy_loss.loss_mode)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert run.stdout.split()[-1] == "spo"

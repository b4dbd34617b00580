"""Rules about ``run.seed``: that it is one, and what it can not make repeatable in a run."""

from __future__ import annotations

import os

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ENVIRONMENT, ROLLOUT
from drpo_verl.configuration.seeds import LARGEST, SETTING

_WITHOUT = f"{SETTING}=null"
_INVARIANT = "VLLM_BATCH_INVARIANT"


@rule
def seed(run: RunConfig) -> Findings:
    """The seed of a run is a number that all its random numbers can start from, and reaches them."""
    value, name = run.get(SETTING), f"{ROLLOUT}.full_determinism"
    if value is None:
        if run.get(name, False) and run.get("trainer.use_v1", True) and run.responses > 1:
            message = "starts each request of a replica from one seed: the responses to a prompt are all the same one."
            yield run.error(name, message, f"{name}=False", f"{SETTING}=0")
        return
    if not is_whole(value, 0) or value > LARGEST:
        advice = f"null means that samples differ from run to run; a seed is 0 to {LARGEST}."
        yield run.error(SETTING, "is no seed.", f"{SETTING}=0", _WITHOUT, advice=advice)
        return
    name = "trainer.use_v1"
    if not run.get(name, True):
        message = f"but only the V1 trainer's samples get the random numbers of {SETTING}={value}."
        yield run.error(name, message, f"{name}=True", _WITHOUT)
    name = f"{ROLLOUT}.name"
    if run.get(name, "vllm") != "vllm":
        message = f"does not take the seed of a sample as {SETTING}={value} gives it."
        yield run.error(name, message, f"{name}=vllm", _WITHOUT)


@rule
def repeatable(run: RunConfig) -> Findings:
    """A run with a seed is one that the seed can repeat."""
    value = run.get(SETTING)
    if value is None:
        return
    fixed = f"samples and the order of the data follow {SETTING}={value}, but "
    if run.trainer_mode != "sync":
        name = "trainer.v1.trainer_mode"
        message = f"{fixed}the time that each takes decides which weights it is of: the run is not repeatable."
        yield run.warning(name, message, f"{name}=sync", _WITHOUT)
    for name in ("algorithm.filter_groups.enable", "trainer.v1.sampler.sync_refill_failed_groups"):
        if run.get(name, False):
            message = f"{fixed}how many prompts take the place of others depends on the time that each takes."
            yield run.warning(name, message, f"{name}=False", _WITHOUT)
    name = f"{ROLLOUT}.agent.agent_loop_manager_class"
    if run.get(name) is not None:
        message = f"may not give its samples the random numbers of {SETTING}={value}, as verl's own manager does."
        yield run.warning(name, message, f"{name}=null", _WITHOUT)
    if run.get("critic.enable", False) or run.get("algorithm.adv_estimator") == "gae":
        message = f"of a critic, whose new weights do not follow {SETTING}={value}."
        name, without_critic = "algorithm.adv_estimator", "algorithm.adv_estimator=grpo critic.enable=False"
        yield run.warning(name, message, without_critic, _WITHOUT)
    name = f"{ENVIRONMENT}.{_INVARIANT}"
    if not run.on_cpu and str(run.get(name, os.environ.get(_INVARIANT, "0"))) != "1":
        message = f"while {SETTING}={value}: log-probabilities depend on what else is in a batch, and so does a token "
        message += "now and then. With it, vLLM samples more slowly."
        yield run.note(name, message, run.override(name, "'1'"))

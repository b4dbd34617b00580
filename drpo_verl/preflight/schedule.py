"""Rules about the course of a run: staleness, steps, validation, loggers."""

from __future__ import annotations

import importlib.util

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_number, is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import CORRECTION

_MODES = ("sync", "colocate_async", "separate_async")
_SAMPLER = "trainer.v1.sampler"
_LONG_RUN = 50
"""Steps from which on a run should save and validate in its course."""
_PACKAGES = {
    "wandb": "wandb", "mlflow": "mlflow", "swanlab": "swanlab", "tensorboard": "tensorboard", "clearml": "clearml",
    "trackio": "trackio", "vemlp_wandb": "volcengine_ml_platform", "rl_insight": "rl_insight",
    "console": None, "file": None,
}  # fmt: skip
"""Loggers of verl's ``Tracking``, and the package that each imports."""


@rule
def staleness(run: RunConfig) -> Findings:
    """The trainer mode is one of verl's, its prefetching is bounded, and it drops less than it makes."""
    mode = run.trainer_mode
    if mode not in _MODES:
        name = "trainer.v1.trainer_mode"
        yield run.error(name, f"is none of {', '.join(_MODES)}.", f"{name}=sync")
        return
    limit_setting, strategy_setting = f"{_SAMPLER}.max_off_policy_threshold", f"{_SAMPLER}.max_off_policy_strategy"
    limit, strategy = run.get(limit_setting), run.get(strategy_setting, "drop")
    if limit is not None and not is_whole(limit, 1):
        override, advice = f"{limit_setting}=null", "That means no limit."
        yield run.error(limit_setting, "is not a whole number of at least 1.", override, advice=advice)
    if strategy not in ("drop", "wait"):
        overrides = f"{strategy_setting}=drop", f"{strategy_setting}=wait"
        yield run.error(strategy_setting, "is neither drop nor wait.", *overrides)
    if mode == "sync":
        return
    name = f"trainer.v1.{mode}.num_warmup_batches"
    batches = run.get(name, 1)
    if not is_number(batches) or batches < 0:
        yield run.error(name, "is no number of batches.", f"{name}=1")
    elif batches == 0:
        message = "prefetches nothing: the trainer waits for each rollout, as the synchronous one does."
        yield run.warning(name, message, f"{name}=1")
    elif is_whole(limit, 1) and batches >= limit:
        message = f"batches ahead are as stale as max_off_policy_threshold={limit} allows: what was sampled is "
        message += "dropped." if strategy == "drop" else "waited for."
        yield run.warning(name, message, f"{name}={limit - 1}" if limit > 1 else f"{limit_setting}={int(batches) + 1}")
    if mode == "separate_async" and not run.bypass and run.sync_step > 1:
        message = "recomputes pi_old from weights that are kept in host memory, and swapped in for "
        yield run.note(f"{CORRECTION}.bypass_mode", f"{message}{run.sync_step - 1} of {run.sync_step} updates.")


@rule
def steps(run: RunConfig) -> Findings:
    """The run has steps that update the policy, and validates and saves in their course."""
    name = "trainer.total_training_steps"
    total = run.get(name)
    if total is not None and not is_whole(total, 1):
        advice = "That trains for whole epochs."
        yield run.error(name, "is not a whole number of at least 1.", f"{name}=null", advice=advice)
        return
    name = "run.stall_seconds"
    if run.number(name) <= 0:
        yield run.error(name, "ends every run at once.", f"{name}=900", advice="It has to be more than a step takes.")
    yield from _only_part_of_a_run(run)
    is_long = total is None or total > _LONG_RUN
    for key, what, example in (("test_freq", "validates", 10), ("save_freq", "saves", 20)):
        name = f"trainer.{key}"
        frequency = run.get(name, -1)
        if not is_whole(frequency) or frequency == 0:
            yield run.error(name, "is not a number of steps.", f"{name}={example}")
        elif total is not None and frequency > total:
            # verl does both after the last step too, if it does it at all.
            yield run.note(name, f"is more than the {total} steps: the run {what} after the last one only.")
        elif frequency == -1 and is_long and key == "save_freq":
            message = "saves nothing: a run that is interrupted starts from the beginning."
            yield run.warning(name, message, f"{name}={example}")
        elif frequency == -1 and is_long and not run.get("trainer.val_before_train", True):
            yield run.warning(name, "validates nothing.", f"{name}={example}")


def _only_part_of_a_run(run: RunConfig) -> Findings:
    """What verl skips: training, with a validation only; updates, while a critic warms up that may not exist."""
    name, before = "trainer.val_only", "trainer.val_before_train"
    if run.get(name, False):
        if not run.get(before, True):
            message = f"is read after the validation before training only, and {before}=False: the run would train."
            yield run.error(name, message, f"{before}=True", f"{name}=False")
        else:
            yield run.note(name, "validates, and trains nothing.")
    name, total = "trainer.critic_warmup", run.get("trainer.total_training_steps")
    warm_up = run.get(name, 0)
    if not is_whole(warm_up, 0):
        yield run.error(name, "is not a whole number of steps.", f"{name}=0")
    elif warm_up > 1 and is_whole(total, 1) and warm_up > total:
        yield run.error(name, f"is more than the {total} steps: the policy is never updated.", f"{name}=0")
    elif warm_up > 1 and run.get("algorithm.adv_estimator", "gae") != "gae" and not run.get("critic.enable", False):
        message = f"updates nothing in the first {warm_up - 1} steps: there is no critic to warm up."
        yield run.error(name, message, f"{name}=0")


@rule
def loggers(run: RunConfig) -> Findings:
    """The loggers are verl's, and their packages are installed."""
    name = "trainer.logger"
    value = run.get(name, ["console"])
    chosen = [value] if isinstance(value, str) else value
    for logger in chosen:
        others = f"{name}=[{','.join(each for each in chosen if each != logger) or 'console'}]"
        if logger not in _PACKAGES:
            message = f"has {logger!r}, which verl does not know."
            yield run.error(name, message, others, advice=f"verl has {', '.join(_PACKAGES)}.")
        elif (package := _PACKAGES[logger]) and importlib.util.find_spec(package) is None:
            message = f"has {logger!r}, and {package} is not installed on this machine."
            yield run.warning(name, message, others, advice="Or install it.")

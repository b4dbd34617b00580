"""Rules about the method: its loss mode and settings, its anchor, and the distribution that was sampled from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING

from drpo_verl.check.remedies import refused
from drpo_verl.check.rule import Findings, Required, rule, unmet
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.method import LOSS_MODE
from drpo_verl.configuration.plugins import plugin_errors
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import CORRECTION, MODEL, POLICY_LOSS, ROLLOUT

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from drpo_verl.losses import Objective

_TARGET = "drpo_verl.adapters.config.TrustRegionLossConfig"

ANCHOR = f"{POLICY_LOSS}.anchor"

_TRAINER: Mapping[str, Required] = {
    "trainer.use_v1": Required((True,), "the legacy trainer replaces the loss mode in bypass mode.", default=True),
    "distillation.enabled": Required((False, None), "verl's distillation replaces the loss function of the method."),
}
_ANOTHER_DISTRIBUTION = "the rollout would sample from another distribution than the policy."
_LOG_MU = "log mu has to be that of the distribution that was sampled from, temperature included."
SAMPLING: Mapping[str, Required] = {
    f"{ROLLOUT}.top_p": Required((1.0, None), _ANOTHER_DISTRIBUTION),
    f"{ROLLOUT}.top_k": Required((-1, None), _ANOTHER_DISTRIBUTION),
    f"{ROLLOUT}.repetition_penalty": Required((1.0, None), _ANOTHER_DISTRIBUTION),
    f"{ROLLOUT}.logprobs_mode": Required(("processed_logprobs", None), _LOG_MU),
    f"{ROLLOUT}.engine_kwargs.vllm.logprobs_mode": Required(("processed_logprobs", None), _LOG_MU),
}
"""What makes the rollout engine sample from the policy itself, and report that policy's log-probabilities."""
_BYPASS: Mapping[str, Required] = {
    f"{CORRECTION}.rollout_rs": Required(
        (None,), "verl's V1 trainer rejects nothing in bypass mode; policy_loss.sequence_mask leaves out responses."
    ),
    f"{CORRECTION}.rollout_is": Required((None,), "verl's V1 trainer weighs nothing in bypass mode."),
}
_COUNTED_TWICE = "the loss truncates pi / mu itself (policy_loss.ratio_cap), and a second weight would count mu twice."
_RECOMPUTED: Mapping[str, Required] = {f"{CORRECTION}.rollout_is": Required((None,), _COUNTED_TWICE)}


def is_recomputed(run: RunConfig) -> bool:
    """Whether the distances of a method of ours are measured from a recomputed pi_old."""
    return bool(run.get(ANCHOR, "rollout") == "recomputed")


def objective_of(run: RunConfig) -> Objective | None:
    """The row of our table that a run's loss mode names; None for verl's own losses and unknown ones."""
    import verl  # noqa: F401  and with it the packages that register objectives

    from drpo_verl.losses import OBJECTIVES

    return OBJECTIVES.get(run.loss_mode)


def has_no_effect(config: DictConfig, setting: str) -> bool:
    """Whether the method of a configuration refuses a setting of the policy loss, or never reads it.

    Args:
        config: of a run, as far as it could be composed.
        setting: any setting's full name.
    """
    from omegaconf import OmegaConf

    section, _, name = setting.rpartition(".")
    if section != POLICY_LOSS or OmegaConf.select(config, f"{POLICY_LOSS}._target_") != _TARGET:
        return False
    from verl.workers.config import PolicyLossConfig

    from drpo_verl.adapters.config import TrustRegionLossConfig
    from drpo_verl.losses import OBJECTIVES

    row = OBJECTIVES.get(str(OmegaConf.select(config, LOSS_MODE)))
    of_verl = {field.name for field in fields(PolicyLossConfig)} - {"loss_mode"}
    applies = {field.name: field.metadata.get("applies") for field in fields(TrustRegionLossConfig)}.get(name)
    return row is not None and (name in of_verl or (applies is not None and not applies(row)))


@rule
def loss_mode(run: RunConfig) -> Findings:
    """The loss mode is one that somebody has registered, and one of ours comes with its own configuration."""
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    from drpo_verl.losses import OBJECTIVES

    has_settings = run.get(f"{POLICY_LOSS}._target_") == _TARGET
    # A library named there is imported by the workers only, and may register losses of its own.
    if run.loss_mode not in {*POLICY_LOSS_REGISTRY, *OBJECTIVES} and not run.get(f"{MODEL}.external_lib"):
        modes = list(OBJECTIVES) if has_settings else sorted({*POLICY_LOSS_REGISTRY} - {*OBJECTIVES})
        known = ", ".join(sorted({*POLICY_LOSS_REGISTRY, *OBJECTIVES}))
        overrides = [f"{LOSS_MODE}={mode}" for mode in get_close_matches(run.loss_mode, modes, n=1, cutoff=0)]
        advice = "A method of drpo-verl is chosen with +method=<name>."
        yield run.error(LOSS_MODE, f"is not a loss mode; known: {known}.", *overrides, advice=advice)
        for module, error in plugin_errors():  # of which one may have been meant to register it
            problem = f"is a plugin that verl could not load ({type(error).__name__}: {error})."
            yield Finding("error", module, None, problem, f"`python -c 'import {module}'` shows where the error is.")
    elif run.loss_mode in OBJECTIVES and not has_settings:
        advice = f"Use +method={run.loss_mode} instead, which sets the loss mode, its thresholds and its anchor."
        yield run.error(LOSS_MODE, "was set without its configuration.", advice=advice)


@rule
def policy_loss(run: RunConfig) -> Findings:
    """The method's own settings are complete, of the right kind, have an effect, and go with the anchor."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if run.get(f"{POLICY_LOSS}._target_") != _TARGET or objective_of(run) is None:
        return
    try:
        instantiate(OmegaConf.select(run.composed, POLICY_LOSS), _convert_="partial")
    except InstantiationException as error:
        from drpo_verl.adapters.setting import SettingError

        cause = error.__cause__
        if isinstance(cause, SettingError):
            yield refused(run, cause)
        elif unknown := re.search(r"unexpected keyword argument '(\w+)'", str(cause)):
            from drpo_verl.adapters.config import TrustRegionLossConfig

            names = [field.name for field in fields(TrustRegionLossConfig)]
            known = [name for name in names if not has_no_effect(run.composed, f"{POLICY_LOSS}.{name}")]
            close = get_close_matches(unknown[1], known, n=1)
            remedy = f"Did you mean {POLICY_LOSS}.{close[0]}?" if close else "Leave it out."
            yield Finding("error", f"{POLICY_LOSS}.{unknown[1]}", None, "is no setting of a method.", remedy)
        else:
            yield Finding("error", POLICY_LOSS, None, f"is refused: {cause or error}", "Choose a method with +method=.")


@rule
def trainer(run: RunConfig) -> Findings:
    """verl's V1 trainer runs the method, and nothing replaces its loss."""
    if objective_of(run) is not None:
        yield from unmet(run, _TRAINER)


@rule
def sampling_distribution(run: RunConfig) -> Findings:
    """The rollout samples from the policy itself: top-p 1, top-k -1, no penalty, processed log-probabilities."""
    if objective_of(run) is not None:
        yield from unmet(run, SAMPLING)


@rule
def rollout_correction(run: RunConfig) -> Findings:
    """No rejection or second importance weight is set where verl does nothing with it, or the loss has one already."""
    if objective_of(run) is not None:
        yield from unmet(run, _BYPASS if run.bypass else _RECOMPUTED if is_recomputed(run) else {})


@rule
def anchor(run: RunConfig) -> Findings:
    """pi_old is recomputed by who has it; the method's copies of settings agree with the settings, which verl reads."""
    if objective_of(run) is None:
        return
    bypass = f"{CORRECTION}.bypass_mode"
    if is_recomputed(run) and run.bypass and run.sync_step > 1:
        message = f"but {ANCHOR}=recomputed, and of {run.sync_step} updates between two weight syncs only the first "
        message += "is made with pi_old."
        yield run.error(bypass, message, run.override(bypass, False), advice="verl then keeps the weights of pi_old.")
    for copy, original in (
        (f"{POLICY_LOSS}.bypass_mode", f"{CORRECTION}.bypass_mode"),
        (f"{POLICY_LOSS}.rollout_log_probs", f"{ROLLOUT}.calculate_log_probs"),
    ):
        value = bool(run.get(copy, True))
        if value != bool(run.get(original, False)):
            message = f"is a copy of {original}={run.get(original)}, which is what counts."
            yield run.error(copy, message, run.override(original, value), advice="Leave the copy alone.")

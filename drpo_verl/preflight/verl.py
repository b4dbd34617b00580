"""What verl itself refuses: the engines that it does not have, and its own validation, without vLLM and its prints."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, MODEL, ROLLOUT

_ROLLOUT_ENGINES = ("vllm", "sglang", "trtllm")
_TRAINING_ENGINES = ("fsdp2", "fsdp", "fsdp_turbo", "megatron", "veomni", "torchtitan", "automodel")


@rule
def engines(run: RunConfig) -> Findings:
    """The rollout engine, the training engine and the device are ones that verl has; on a CPU, ones that work there."""
    import torch

    name = f"{ROLLOUT}.name"
    if run.get(name) is None:
        yield run.error(name, "is not set, and verl has no default.", f"{name}=vllm")
    if not run.get(f"{MODEL}.external_lib"):  # which may register others
        for setting, known in ((name, _ROLLOUT_ENGINES), (f"{ACTOR}.strategy", _TRAINING_ENGINES)):
            if run.get(setting, known[0]) not in known:
                advice = f"verl has {', '.join(known)}."
                yield run.error(setting, "is not an engine of verl's.", f"{setting}={known[0]}", advice=advice)
    name = "trainer.device"
    try:
        torch.device(run.get(name, "cuda"))
    except (RuntimeError, TypeError):
        advice = "Of a run on a CPU, the cpu groups of hardware and backend set it."
        yield run.error(name, "is not a device of PyTorch's.", f"{name}=cuda", advice=advice)

    if run.on_cpu:
        yield from _on_a_cpu(run)


def _on_a_cpu(run: RunConfig) -> Findings:
    name = f"{ACTOR}.strategy"
    if run.strategy == "fsdp":
        message = "can not spread its parameters from a CPU (sync_module_states)."
        yield run.error(name, message, f"{name}=fsdp2")
    name = f"{MODEL}.override_config.attn_implementation"
    if run.strategy.startswith("fsdp") and run.get(name, "flash_attention_2").startswith("flash"):
        yield run.error(name, "is verl's default, and needs a GPU.", run.override(name, "sdpa"))


@rule
def accepted_by_verl(run: RunConfig) -> Findings:
    """verl's own `validate_config` and its dataclasses accept the configuration; asked when nothing else is wrong."""
    from hydra.errors import InstantiationException
    from omegaconf import OmegaConf, open_dict
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils import config as verl_config

    config = copy.deepcopy(run.composed)
    with open_dict(config):
        # validate_config imports vLLM for the rank of adapters, which the rule lora is about.
        for name in (f"{MODEL}.lora_rank", f"{MODEL}.lora.rank"):
            if OmegaConf.select(config, name):
                OmegaConf.update(config, name, 0)
    # Without the rules of drpo_verl.check, which have been applied.
    validate = getattr(verl_config.validate_config, "__wrapped__", verl_config.validate_config)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            validate(config, need_reference_policy(config), need_critic(config))
            if run.get(f"{ROLLOUT}.name") is not None:
                verl_config.omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    except (InstantiationException, ValueError, AssertionError, NotImplementedError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        section = ACTOR if "actor" in str(error) else ROLLOUT if "rollout" in str(error) else "verl"
        yield Finding("error", section, None, f"is refused by verl: {cause}")

"""Rules about sampling that concern any run: temperature, validation, router replay, and what verl's losses need."""

from __future__ import annotations

from drpo_verl.check.method import SAMPLING, objective_of
from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_number, is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import CORRECTION, ROLLOUT


@rule
def verl_losses(run: RunConfig) -> Findings:
    """With a loss of verl's own: log-probabilities that are used are returned, of the distribution sampled from."""
    if objective_of(run) is not None:
        return
    log_probs, bypass = f"{ROLLOUT}.calculate_log_probs", f"{CORRECTION}.bypass_mode"
    if run.bypass and not run.get(log_probs, False):
        message = "but bypass_mode takes the rollout's log-probabilities for pi_old."
        yield run.error(log_probs, message, f"{log_probs}=True")
    elif run.loss_mode.startswith("dppo") and not run.bypass:
        message = f"anchors loss_mode={run.loss_mode!r} on a recomputed pi_old: the DPPO paper sees it collapse so."
        yield run.warning(bypass, message, run.override(bypass, True))
    for name, required in SAMPLING.items():
        if not required.is_met(run, name):
            yield run.warning(name, f"means that {required.why}", f"{name}={required.allowed[0]}")


@rule
def temperature(run: RunConfig) -> Findings:
    """The temperature is above 0, sampled with, and the same on both sides; validation has its own."""
    name = f"{ROLLOUT}.temperature"
    value = run.get(name, 1.0)
    if not is_number(value) or value <= 0:
        message = "is no temperature to sample at: both engines divide the logits by it."
        yield run.error(name, message, f"{name}=1.0", advice="Both papers have that.")
    elif value != 1:
        message = "is what both engines divide the logits by, as verl hands it to the actor too. Both papers sample at "
        yield run.note(name, message + "1.0: the policy that is evaluated elsewhere at 1.0 is another one.")
    name = f"{ROLLOUT}.do_sample"
    if not run.get(name, True):
        message = "but training samples from the policy; verl's agent loop does not read it."
        yield run.error(name, message, f"{name}=True")
    for key in ("override_generation_config", "generation_config"):
        name = f"{ROLLOUT}.engine_kwargs.vllm.{key}"
        if run.get(name) is not None:
            message = "can change vLLM's sampling behind the rollout's settings, which are what the actor gets."
            advice = f"Set {ROLLOUT}.{{temperature,top_p,top_k}} instead."
            yield run.warning(name, message, f"{name}=null", advice=advice)
    yield from _validation(run)


def _validation(run: RunConfig) -> Findings:
    do_sample, name, count = (f"{ROLLOUT}.val_kwargs.{key}" for key in ("do_sample", "temperature", "n"))
    sampled, value = bool(run.get(do_sample, False)), run.number(name)
    if value < 0:
        yield run.error(name, "is no temperature.", f"{name}=1.0", advice="0 takes the likeliest token.")
    elif sampled and value == 0:
        yield run.error(name, f"but {do_sample}=True samples.", f"{name}=1.0", f"{do_sample}=False")
    elif not sampled and value > 0:
        message = f"samples, whatever {do_sample}=False says: verl's V1 trainer reads the temperature only."
        yield run.warning(name, message, f"{name}=0", f"{do_sample}=True")
    elif value == 0 and run.whole(count) > 1:
        message = f"responses to each prompt are all the same one: {do_sample} is False."
        yield run.warning(count, message, f"{count}=1", f"{do_sample}=True {name}=1.0")
    name = f"{ROLLOUT}.val_kwargs.top_p"
    value = run.get(name, 1.0)
    if not is_number(value) or not 0 < value <= 1:
        yield run.error(name, "is not above 0 and at most 1, and vLLM refuses each request.", f"{name}=1.0")
    name = f"{ROLLOUT}.val_kwargs.top_k"
    if not is_whole(run.get(name, -1), -1):
        yield run.error(name, "is neither -1 nor a number of tokens, and vLLM refuses each request.", f"{name}=-1")


@rule
def router_replay(run: RunConfig) -> Findings:
    """Router replay: R2 not with bypass mode, R3 with the rollout's routes; of experts, and not with FSDP."""
    name, routes = f"{run.engine}.router_replay.mode", f"{ROLLOUT}.enable_rollout_routing_replay"
    mode, recorded = run.get(name, "disabled"), bool(run.get(routes, False))
    if mode != "disabled" and run.is_fsdp:
        yield run.error(name, "is not read by the FSDP engine.", f"{name}=disabled", "backend=megatron")
    elif mode == "R2" and run.bypass:
        message = "but bypass_mode=True skips the forward pass that R2 records the routes in."
        yield run.error(name, message, f"{name}=R3 {routes}=True", advice="R3 replays the rollout's routes.")
    elif mode == "R3" and not recorded:
        yield run.error(routes, f"but {name}=R3 replays the routes of the rollout.", f"{routes}=True")
    if recorded and mode != "R3":
        message = f"returns the rollout's routes, and {name}={mode} does not replay them."
        replayed = [] if run.is_fsdp else [run.override(name, "R3")]
        advice = "FSDP has no router replay." if run.is_fsdp else ""
        yield run.error(routes, message, f"{routes}=False", *replayed, advice=advice)
    if mode != "disabled" and run.architecture is not None and not run.architecture.experts:
        yield run.error(name, "but the model has no experts.", f"{name}=disabled")

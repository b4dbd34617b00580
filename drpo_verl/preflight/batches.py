"""Rules about how a rollout is cut: mini-batches, ranks, micro-batches."""

from __future__ import annotations

import math

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, REFERENCE, ROLLOUT

_TRAIN_BATCH = "data.train_batch_size"
_MINI_BATCH = f"{ACTOR}.ppo_mini_batch_size"
_REFILL = "trainer.v1.sampler.sync_refill_failed_groups"


@rule
def rollout_batch(run: RunConfig) -> Findings:
    """The samples of a rollout (`train_batch_size` x `rollout.n`) divide evenly over the ranks, as verl demands."""
    if run.dynamic_batch:
        return
    samples, ranks, unit = run.prompts * run.responses, run.world, "ranks"
    if run.is_megatron:
        ranks = run.data_parallel * (run.micro_batch or 1)
        unit = f"({run.data_parallel} data-parallel ranks x micro-batch {run.micro_batch or 1})"
    if samples % ranks:
        step = ranks // math.gcd(ranks, run.responses)
        message = f"prompts x rollout.n={run.responses} are {samples} samples, which {ranks} {unit} do not divide."
        override = f"{_TRAIN_BATCH}={step * math.ceil(run.prompts / step)}"
        yield run.error(_TRAIN_BATCH, message, override, advice=f"Any multiple of {step} will do.")


@rule
def generation_batch(run: RunConfig) -> Findings:
    """`gen_batch_size`, the prompts of a fetch from the data, divides a rollout, and is left out where verl sets it."""
    name = "data.gen_batch_size"
    size = run.get(name)
    if size is None:
        return
    if not is_whole(size, 1):
        yield run.error(name, "is not a whole number of at least 1.", f"{name}=null", advice="That is a whole rollout.")
    elif fetches_single_prompts(run):
        if size != 1:
            advice = "Asynchronous trainers, and those that replace groups of samples, fetch prompt by prompt."
            yield run.warning(name, "is overridden by 1.", f"{name}=null", advice=advice)
    elif run.prompts % size:
        message = f"does not divide the {run.prompts} prompts of a rollout, which verl refuses in the first step."
        yield run.error(name, message, f"{name}={_divisor(run.prompts, size)}", f"{name}=null")


def fetches_single_prompts(run: RunConfig) -> bool:
    """Whether verl fetches prompts one by one, whatever the configuration says, to replace groups exactly."""
    replaced = run.get("algorithm.filter_groups.enable", False), run.get(_REFILL, False)
    return run.trainer_mode != "sync" or any(replaced)


@rule
def mini_batch(run: RunConfig) -> Findings:
    """`ppo_mini_batch_size`, in prompts, fits into a rollout, divides it, and its samples divide over the ranks."""
    prompts, step = run.prompts // run.sync_step, run.data_parallel // math.gcd(run.data_parallel, run.responses)
    fitting = _nearest_mini_batch(run, prompts, step)
    if run.standalone_rollout and run.prompts != run.sync_step * run.mini_batch:
        message = f"is not parameter_sync_step={run.sync_step} x ppo_mini_batch_size={run.mini_batch}, as verl's "
        override = f"{_TRAIN_BATCH}={run.sync_step * run.mini_batch}"
        yield run.error(_TRAIN_BATCH, message + "separate asynchronous trainer demands.", override)
    elif run.prompts % run.sync_step:
        message = (
            f"prompts are not divided by parameter_sync_step={run.sync_step}, which verl asserts in the first step."
        )
        override = f"{_TRAIN_BATCH}={run.sync_step * max(1, prompts)}"
        yield run.error(_TRAIN_BATCH, message, override, advice=f"Any multiple of {run.sync_step} will do.")
    elif run.mini_batch > prompts:
        message = f"is more than the {prompts} prompts of a rollout: verl refuses it, or adds empty samples."
        yield run.error(_MINI_BATCH, message, fitting, advice="A divisor of it means several updates a rollout.")
    elif prompts % run.mini_batch:
        missing = run.mini_batch - prompts % run.mini_batch
        message = f"does not divide the {prompts} prompts of a rollout: verl fills the last mini-batch up with "
        message += f"{missing} empty prompts, so that its gradient counts for {1 - missing / run.mini_batch:.0%}."
        yield run.warning(_MINI_BATCH, message, fitting)
    if run.mini_batch_per_rank is None:
        message = f"prompts x rollout.n={run.responses} are {run.mini_batch * run.responses} samples, which "
        message += f"{run.data_parallel} data-parallel ranks do not divide."
        yield run.error(_MINI_BATCH, message, fitting, advice=f"It has to be a multiple of {step}.")


def _nearest_mini_batch(run: RunConfig, prompts: int, step: int) -> str:
    """The nearest mini-batch that divides a rollout, and over the ranks; if there is none, with another rollout."""
    fitting = [size for size in range(step, prompts + 1, step) if prompts % size == 0]
    if fitting:
        return f"{_MINI_BATCH}={min(fitting, key=lambda size: (size > run.mini_batch, abs(size - run.mini_batch)))}"
    size = step * math.ceil(run.mini_batch / step)
    rollout = size * run.sync_step * math.ceil(run.prompts / size / run.sync_step)
    return f"{_MINI_BATCH}={size} {_TRAIN_BATCH}={rollout}"


@rule
def micro_batch(run: RunConfig) -> Findings:
    """Micro-batches are set per card and divide a rank's share of the mini-batch, or have room for a whole sequence."""
    if run.dynamic_batch:
        yield from _room_for_a_sequence(run, f"{ACTOR}.ppo_max_token_len_per_gpu")
        return
    name = f"{ACTOR}.ppo_micro_batch_size_per_gpu"
    if run.micro_batch is None:
        deprecated = f"{ACTOR}.ppo_micro_batch_size"
        message, override = "is not a whole number of at least 1, and use_dynamic_bsz is off", f"{name}=1"
        if run.get(deprecated) is not None:
            message += " (verl's engines do not read the deprecated ppo_micro_batch_size)"
            override += f" {deprecated}=null"
        advice = f"Any divisor of {run.mini_batch_per_rank or run.mini_batch * run.responses} will do."
        yield run.error(name, f"{message}.", override, advice=advice)
    elif run.mini_batch_per_rank is not None and run.mini_batch_per_rank % run.micro_batch:
        message = f"does not divide a rank's {run.mini_batch_per_rank} samples of a mini-batch ({run.mini_batch} "
        message += f"prompts x {run.responses} responses / {run.data_parallel} data-parallel ranks)."
        yield run.error(name, message, f"{name}={_divisor(run.mini_batch_per_rank, run.micro_batch)}")


def _divisor(total: int, near: int) -> int:
    return max(size for size in range(1, min(total, near) + 1) if total % size == 0)


@rule
def log_prob_micro_batch(run: RunConfig) -> Findings:
    """Micro-batches of recomputed and reference log-probabilities are set, fit the batch, and are cut like updates."""
    name = f"{ROLLOUT}.log_prob_use_dynamic_bsz"
    if bool(run.get(name, run.dynamic_batch)) != run.dynamic_batch:
        message = f"but {ACTOR}.use_dynamic_bsz={run.dynamic_batch}, and verl asserts that they are equal."
        yield run.error(name, message, f"{name}={run.dynamic_batch}")
    users = [(ROLLOUT, not run.bypass)] + [(REFERENCE, True)] * run.needs_reference
    # verl fills a rollout up to whole mini-batches before it is scored.
    per_update = run.prompts // run.sync_step
    samples = math.ceil(per_update / run.mini_batch) * run.mini_batch * run.responses
    for section, used in users:
        if bool(run.get(f"{section}.log_prob_use_dynamic_bsz", run.dynamic_batch)):
            if used:
                yield from _room_for_a_sequence(run, f"{section}.log_prob_max_token_len_per_gpu")
            continue
        name = f"{section}.log_prob_micro_batch_size_per_gpu"
        size = run.get(name)
        if not is_whole(size, 1):
            advice = "It has to be set even where it is not used."
            yield run.error(name, "is not a whole number of at least 1.", f"{name}=1", advice=advice)
        elif used and samples % run.data_parallel == 0 and (samples // run.data_parallel) % size:
            share = samples // run.data_parallel
            message = f"does not divide a rank's {share} samples of a rollout."
            yield run.error(name, message, f"{name}={_divisor(share, size)}")


def _room_for_a_sequence(run: RunConfig, name: str) -> Findings:
    least = math.ceil(run.sequence_length / run.context_parallel)
    if run.whole(name) < least:
        message = f"has no room for a sequence of {run.sequence_length} tokens (prompt {run.prompt_length} + response "
        message += f"{run.response_length}) on {run.context_parallel} sequence-parallel rank(s)."
        yield run.error(name, message, f"{name}={least}", advice=f"It has to be at least {least}.")


@rule
def epochs(run: RunConfig) -> Findings:
    """More than one pass over a rollout is said: both papers take one."""
    if run.epochs > 1:
        message = f"passes over each rollout: {run.updates_per_rollout} updates on the same samples, "
        yield run.note(f"{ACTOR}.ppo_epochs", message + "where both papers take one pass.")

"""Rules about how a rollout is cut: mini-batches, ranks, micro-batches."""

from __future__ import annotations

import math

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, REFERENCE, ROLLOUT

_TRAIN_BATCH = "data.train_batch_size"
_MINI_BATCH = f"{ACTOR}.ppo_mini_batch_size"


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
        yield run.error(
            _TRAIN_BATCH,
            f"prompts x rollout.n={run.responses} are {samples} samples, which {ranks} {unit} do not divide.",
            f"{_TRAIN_BATCH}={step * math.ceil(run.prompts / step)}", advice=f"Any multiple of {step} will do.",
        )  # fmt: skip


@rule
def mini_batch(run: RunConfig) -> Findings:
    """`ppo_mini_batch_size`, in prompts, fits into a rollout, divides it, and its samples divide over the ranks."""
    prompts = run.prompts // run.sync_step
    if run.trainer_mode == "separate_async" and run.prompts != run.sync_step * run.mini_batch:
        yield run.error(
            _TRAIN_BATCH,
            f"is not parameter_sync_step={run.sync_step} x ppo_mini_batch_size={run.mini_batch}, as verl's separate "
            "asynchronous trainer demands.",
            f"{_TRAIN_BATCH}={run.sync_step * run.mini_batch}",
        )
    elif run.mini_batch > prompts:
        yield run.error(
            _MINI_BATCH,
            f"is more than the {prompts} prompts of a rollout: verl refuses it, or fills it up with empty samples.",
            *_mini_batches(run, prompts), advice="A divisor of it means several updates a rollout.",
        )  # fmt: skip
    elif prompts % run.mini_batch:
        missing = run.mini_batch - prompts % run.mini_batch
        yield run.warning(
            _MINI_BATCH,
            f"does not divide the {prompts} prompts of a rollout: verl fills the last mini-batch up with {missing} "
            f"empty prompts, so that its gradient counts for {1 - missing / run.mini_batch:.0%}.",
            *_mini_batches(run, prompts),
        )
    if run.mini_batch_per_rank is None:
        yield run.error(
            _MINI_BATCH,
            f"prompts x rollout.n={run.responses} are {run.mini_batch * run.responses} samples, which "
            f"{run.data_parallel} data-parallel ranks do not divide.",
            *_mini_batches(run, prompts), advice=f"It has to be a multiple of {_mini_batch_step(run)}.",
        )  # fmt: skip


def _mini_batch_step(run: RunConfig) -> int:
    """A mini-batch of so many prompts, or a multiple, divides over the data-parallel ranks."""
    return run.data_parallel // math.gcd(run.data_parallel, run.responses)


def _mini_batches(run: RunConfig, prompts: int) -> list[str]:
    """The nearest mini-batch that divides a rollout, and over the ranks; if there is none, with another rollout."""
    step = _mini_batch_step(run)
    fitting = [size for size in range(step, prompts + 1, step) if prompts % size == 0]
    if fitting:
        return [f"{_MINI_BATCH}={min(fitting, key=lambda size: (size > run.mini_batch, abs(size - run.mini_batch)))}"]
    size = step * math.ceil(run.mini_batch / step)
    rollout = size * run.sync_step * math.ceil(run.prompts / size / run.sync_step)
    return [f"{_MINI_BATCH}={size} {_TRAIN_BATCH}={rollout}"]


@rule
def micro_batch(run: RunConfig) -> Findings:
    """Micro-batches are set per card and divide a rank's share of the mini-batch, or have room for a whole sequence."""
    if run.dynamic_batch:
        name = f"{ACTOR}.ppo_max_token_len_per_gpu"
        if run.whole(name) * run.context_parallel < run.sequence_length:
            least = math.ceil(run.sequence_length / run.context_parallel)
            yield run.error(
                name,
                f"has no room for a sequence of {run.sequence_length} tokens (prompt {run.prompt_length} + response "
                f"{run.response_length}) on {run.context_parallel} sequence-parallel rank(s): the update fails at the "
                "first long one.",
                f"{name}={least}", advice=f"It has to be at least {least}.",
            )  # fmt: skip
        return
    name = f"{ACTOR}.ppo_micro_batch_size_per_gpu"
    if run.micro_batch is None:
        deprecated = f"{ACTOR}.ppo_micro_batch_size"
        is_deprecated = run.get(deprecated) is not None
        yield run.error(
            name,
            "is not a whole number of at least 1, and use_dynamic_bsz is off"
            + (" (verl's engines do not read the deprecated ppo_micro_batch_size)." if is_deprecated else "."),
            f"{name}=1" + (f" {deprecated}=null" if is_deprecated else ""),
            advice=f"Any divisor of {run.mini_batch_per_rank or run.mini_batch * run.responses} will do.",
        )
    elif run.mini_batch_per_rank is not None and run.mini_batch_per_rank % run.micro_batch:
        yield run.error(
            name,
            f"does not divide a rank's {run.mini_batch_per_rank} samples of a mini-batch ({run.mini_batch} prompts x "
            f"{run.responses} responses / {run.data_parallel} data-parallel ranks).",
            f"{name}={_divisor(run.mini_batch_per_rank, run.micro_batch)}",
        )


def _divisor(total: int, near: int) -> int:
    return max(size for size in range(1, min(total, near) + 1) if total % size == 0)


@rule
def log_prob_micro_batch(run: RunConfig) -> Findings:
    """Micro-batches of recomputed and reference log-probabilities are set, fit the batch, and are cut like updates."""
    name = f"{ROLLOUT}.log_prob_use_dynamic_bsz"
    if bool(run.get(name, run.dynamic_batch)) != run.dynamic_batch:
        yield run.error(
            name, f"but {ACTOR}.use_dynamic_bsz={run.dynamic_batch}, and verl asserts that they are equal.",
            f"{name}={run.dynamic_batch}",
        )  # fmt: skip
    users = [(ROLLOUT, not run.bypass)]
    if run.needs_reference:
        users.append((REFERENCE, True))
    # verl fills a rollout up to whole mini-batches before it is scored.
    per_update = run.prompts // run.sync_step
    samples = math.ceil(per_update / run.mini_batch) * run.mini_batch * run.responses
    for section, used in users:
        if bool(run.get(f"{section}.log_prob_use_dynamic_bsz", run.dynamic_batch)):
            yield from _log_prob_tokens(run, section, used)
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


def _log_prob_tokens(run: RunConfig, section: str, used: bool) -> Findings:
    name = f"{section}.log_prob_max_token_len_per_gpu"
    if used and run.whole(name) * run.context_parallel < run.sequence_length:
        least = math.ceil(run.sequence_length / run.context_parallel)
        message = f"has no room for a sequence of {run.sequence_length} tokens."
        yield run.error(name, message, f"{name}={least}", advice=f"It has to be at least {least}.")


@rule
def epochs(run: RunConfig) -> Findings:
    """More than one pass over a rollout is said: both papers take one."""
    if run.epochs > 1:
        yield run.note(
            f"{ACTOR}.ppo_epochs",
            f"passes over each rollout: {run.updates_per_rollout} updates on the same samples, "
            "where both papers take one pass.",
        )

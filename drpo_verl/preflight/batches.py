"""Rules about how a rollout is cut: mini-batches, ranks, micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterable

from drpo_verl.check.registry import rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import ACTOR, ROLLOUT, Run, is_whole


@rule
def numbers(run: Run) -> Iterable[Finding]:
    """Batch sizes, lengths and numbers of cards are whole and at least 1; rates and coefficients are numbers."""
    for name, kind in run.not_numbers.items():
        if not any(other in run.reference(name) for other in run.not_numbers):
            yield run.error(name, f"is not {kind}.", f"Set it to {kind}.")


@rule
def rollout_batch(run: Run) -> Iterable[Finding]:
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
            "data.train_batch_size",
            f"prompts x rollout.n={run.responses} are {samples} samples, which {ranks} {unit} do not divide.",
            f"Set it to a multiple of {step}.",
        )


@rule
def mini_batch(run: Run) -> Iterable[Finding]:
    """`ppo_mini_batch_size`, in prompts, fits into a rollout, divides it, and its samples divide over the ranks."""
    name, prompts = f"{ACTOR}.ppo_mini_batch_size", run.prompts // run.sync_step
    if run.trainer_mode == "separate_async" and run.prompts != run.sync_step * run.mini_batch:
        yield run.error(
            "data.train_batch_size",
            f"is not parameter_sync_step={run.sync_step} x ppo_mini_batch_size={run.mini_batch}, as verl's separate "
            "asynchronous trainer demands.",
            f"Set it to {run.sync_step * run.mini_batch}.",
        )
    elif run.mini_batch > prompts:
        yield run.error(
            name,
            f"is more than the {prompts} prompts of a rollout: verl refuses it, or fills it up with empty samples.",
            f"Set it to {prompts}, or to a divisor of it for several updates a rollout.",
        )
    elif prompts % run.mini_batch:
        missing = run.mini_batch - prompts % run.mini_batch
        yield run.warning(
            name,
            f"does not divide the {prompts} prompts of a rollout: verl fills the last mini-batch up with {missing} "
            f"empty prompts, so that its gradient counts for {1 - missing / run.mini_batch:.0%}.",
            f"Set it to a divisor of {prompts}.",
        )
    if run.mini_batch_per_rank is None:
        step = run.data_parallel // math.gcd(run.data_parallel, run.responses)
        yield run.error(
            name,
            f"prompts x rollout.n={run.responses} are {run.mini_batch * run.responses} samples, which "
            f"{run.data_parallel} data-parallel ranks do not divide.",
            f"Set it to a multiple of {step}.",
        )


@rule
def micro_batch(run: Run) -> Iterable[Finding]:
    """Micro-batches are set per card and divide a rank's share of the mini-batch, or have room for a whole sequence."""
    longest = run.prompt_length + run.response_length
    if run.dynamic_batch:
        name = f"{ACTOR}.ppo_max_token_len_per_gpu"
        room = run.whole(name, 16384) * run.context_parallel
        if room < longest:
            yield run.error(
                name,
                f"has no room for a sequence of {longest} tokens (prompt {run.prompt_length} + response "
                f"{run.response_length}) on {run.context_parallel} sequence-parallel rank(s): the update fails at the "
                "first long one.",
                f"Set it to at least {math.ceil(longest / run.context_parallel)}.",
            )
        return
    name = f"{ACTOR}.ppo_micro_batch_size_per_gpu"
    if run.micro_batch is None:
        yield run.error(
            name,
            "is not a whole number of at least 1, and use_dynamic_bsz is off"
            + (" (verl's engines do not read the deprecated ppo_micro_batch_size)." if _deprecated(run) else "."),
            f"Set it to a divisor of {run.mini_batch_per_rank or run.mini_batch * run.responses}, or set "
            f"{ACTOR}.use_dynamic_bsz=true.",
        )
    elif run.mini_batch_per_rank is not None and run.mini_batch_per_rank % run.micro_batch:
        yield run.error(
            name,
            f"does not divide a rank's {run.mini_batch_per_rank} samples of a mini-batch ({run.mini_batch} prompts x "
            f"{run.responses} responses / {run.data_parallel} data-parallel ranks).",
            f"Set it to {_divisor(run.mini_batch_per_rank, run.micro_batch)}.",
        )


def _deprecated(run: Run) -> bool:
    return run.get(f"{ACTOR}.ppo_micro_batch_size") is not None


def _divisor(total: int, near: int) -> int:
    return max(each for each in range(1, min(total, near) + 1) if total % each == 0)


@rule
def log_prob_micro_batch(run: Run) -> Iterable[Finding]:
    """Micro-batches of recomputed and reference log-probabilities are set, fit the batch, and are cut like updates."""
    name = f"{ROLLOUT}.log_prob_use_dynamic_bsz"
    if bool(run.get(name, run.dynamic_batch)) != run.dynamic_batch:
        yield run.error(
            name,
            f"but {ACTOR}.use_dynamic_bsz={run.dynamic_batch}, and verl asserts that they are equal.",
            f"Set it to {run.dynamic_batch}.",
        )
    users = [(ROLLOUT, not run.bypass, True)]
    if run.needs_reference:
        users.append(("actor_rollout_ref.ref", True, True))
    # verl fills a rollout up to whole mini-batches before it is scored.
    per_update = run.prompts // run.sync_step
    samples = math.ceil(per_update / run.mini_batch) * run.mini_batch * run.responses
    for section, used, required in users:
        if bool(run.get(f"{section}.log_prob_use_dynamic_bsz", run.dynamic_batch)):
            yield from _log_prob_tokens(run, section, used)
            continue
        size = run.get(f"{section}.log_prob_micro_batch_size_per_gpu")
        name = f"{section}.log_prob_micro_batch_size_per_gpu"
        if not (is_whole(size) and size >= 1):
            if required:
                yield run.error(name, "is not a whole number of at least 1.", "Set it, even where it is not used.")
        elif used and samples % run.data_parallel == 0 and (samples // run.data_parallel) % size:
            share = samples // run.data_parallel
            yield run.error(
                name,
                f"does not divide a rank's {share} samples of a rollout.",
                f"Set it to {_divisor(share, size)}.",
            )


def _log_prob_tokens(run: Run, section: str, used: bool) -> Iterable[Finding]:
    name, longest = f"{section}.log_prob_max_token_len_per_gpu", run.prompt_length + run.response_length
    if used and run.whole(name, 16384) * run.context_parallel < longest:
        yield run.error(
            name,
            f"has no room for a sequence of {longest} tokens.",
            f"Set it to at least {math.ceil(longest / run.context_parallel)}.",
        )


@rule
def epochs(run: Run) -> Iterable[Finding]:
    """More than one pass over a rollout is said: both papers take one."""
    if run.epochs > 1:
        yield run.note(
            f"{ACTOR}.ppo_epochs",
            f"passes over each rollout: {run.updates_per_rollout} updates on the same samples, "
            "where both papers take one pass.",
        )

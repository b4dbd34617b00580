"""What a configuration comes to: tokens and updates of a rollout, expected staleness, what the cards are for."""

from __future__ import annotations

import math

from drpo_verl.configuration.precision import rollout_numbers, trainer_numbers
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, ROLLOUT
from drpo_verl.configuration.seeds import SETTING
from drpo_verl.evidence import for_numbers
from drpo_verl.preflight.memory_estimate import Memory
from drpo_verl.preflight.rows import rows_of

_SEEDS = ("data.seed", f"{ACTOR}.data_loader_seed", f"{ROLLOUT}.seed", "prepare.policy.seed", "prepare.data.seed")
"""The seeds that follow the run's."""


def facts(run: RunConfig, memory: Memory | None) -> dict[str, str]:
    """What a configuration comes to, as short statements by name, in the order to be read.

    Args:
        run: the run's configuration.
        memory: the estimate of a card's memory, if there is one.
    """
    samples = run.prompts * run.responses
    rollout, trainer = rollout_numbers(run), trainer_numbers(run)
    statements = {
        "method": run.method or run.loss_mode,
        "model": _model(run),
        "cards": _cards(run),
        "precision": f"rollout in {rollout}; trainer in {trainer}",
        "rollout": f"{run.prompts:,} prompts x {run.responses} responses = {samples:,} samples, at most "
        f"{samples * run.response_length:,} response tokens",
        "update": _update(run),
        "optimiser steps per rollout": str(run.updates_per_rollout),
        "expected staleness": _staleness(run),
    }
    evidence = for_numbers(str(rollout), str(trainer), run.updates_per_rollout)
    if evidence and run.trainer_mode == "sync":
        statements["study"] = evidence.sentence()
    rows = rows_of(run, "train")
    total = run.get("trainer.total_training_steps")
    if rows is not None:
        epochs, of_an_epoch = run.whole("trainer.total_epochs"), rows.most // run.prompts
        statements["data"] = (
            f"{rows.most:,} rows, {_counted(of_an_epoch, 'rollout')} an epoch, at most {epochs:,} epochs"
        )
        total = of_an_epoch * epochs if total is None else total
    if isinstance(total, int):
        statements["whole run"] = (
            f"{total:,} steps, {total * run.updates_per_rollout:,} optimiser steps, {total * samples:,} samples"
        )
    if (seed := run.get(SETTING)) is not None:
        others = {name: run.get(name) for name in _SEEDS}
        named = ", ".join(f"{name}={value}" for name, value in others.items() if value not in (None, seed))
        statements["seed"] = f"{seed}" + (f", but {named}" if named else "")
    if memory is not None and memory.kv_tokens is not None:
        longest = run.sequence_length
        statements["KV cache"] = (
            f"{memory.kv_tokens:,.0f} tokens per replica: {memory.kv_tokens / longest:.0f} sequences of {longest:,} "
            f"tokens at once, on {_counted(run.rollout_world // run.replica_size, 'replica')}"
        )
    return statements


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('ch') else 's'}"


def _model(run: RunConfig) -> str:
    if run.architecture is None:
        return "sizes not known here"
    count = run.architecture.parameters
    size = f"{count.total / 1e9:.2f} G" if count.total >= 1e8 else f"{count.total / 1e6:.2f} M"
    experts = f", {run.architecture.experts} experts" if run.architecture.experts else ""
    return f"{size} parameters{'' if count.exact else ' (by a formula)'}{experts}, {run.architecture.layers} layers"


def _cards(run: RunConfig) -> str:
    cards = _counted(run.world, "worker slot" if run.on_cpu else "card") + (" (CPU)" if run.on_cpu else "")
    sizes = {"tensor": run.tensor_parallel, "pipeline": run.pipeline_parallel}
    sizes |= {"context": run.context_parallel, "expert": run.expert_parallel}
    parts = [f"data parallel {run.data_parallel}", *(f"{name} {size}" for name, size in sizes.items() if size > 1)]
    replicas = run.rollout_world // run.replica_size
    own = f"{run.rollout_world} of its own" if run.standalone_rollout else "the same"
    return (
        f"{cards}, {run.strategy}: {', '.join(parts)}; rollout on {own}: {_counted(replicas, 'replica')} of "
        f"{run.replica_size} ({run.get(f'{ROLLOUT}.name', 'no engine')})"
    )


def _update(run: RunConfig) -> str:
    share = run.mini_batch_per_rank
    text = f"{run.mini_batch:,} prompts = {run.mini_batch * run.responses:,} samples"
    if share is not None:
        text += f", {share:,} per rank"
    if run.micro_batch is not None and share is not None and share % run.micro_batch == 0:
        text += f" in {_counted(share // run.micro_batch, 'micro-batch')} of {run.micro_batch}"
    elif run.dynamic_batch:
        text += f" in micro-batches of at most {run.micro_batch_tokens:,} tokens a card"
    return text


def _staleness(run: RunConfig) -> str:
    within = run.updates_per_rollout - 1
    if run.trainer_mode == "sync":
        if not within:
            return "0 versions, fully on-policy: mu and pi differ by their engines only"
        return f"0 versions: the weights that sample are 0 to {within} optimiser steps old when they are trained on"
    ahead = run.get(f"trainer.v1.{run.trainer_mode}.num_warmup_batches", 1)
    limit = run.get("trainer.v1.sampler.max_off_policy_threshold")
    bound = f", at most {limit}" if limit is not None else ", without a bound"
    return (
        f"about {math.ceil(ahead)} to {math.ceil(ahead) + 1} versions of {run.updates_per_rollout} optimiser steps"
        f"{bound} (long responses are continued with newer weights)"
    )

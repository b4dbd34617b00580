"""The rule about a card's memory. Of the remedies that it could name, it tries out which ones work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from drpo_verl.check.method import objective_of
from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.finding import Finding, remedy_sentence
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, MODEL, ROLLOUT
from drpo_verl.preflight.memory_estimate import CARD, GIB, UTILISATION, Memory, card_gib, estimate
from drpo_verl.preflight.parallel import fits_rollout

_FEW_SEQUENCES = 8
"""With room for fewer whole sequences, vLLM interrupts some of them again and again."""


@rule
def memory(run: RunConfig) -> Findings:
    """A card's memory, as estimated, holds the update, the rollout beside what the trainer keeps, and a KV cache."""
    if not 0 < run.number(UTILISATION) <= 1:
        yield run.error(UTILISATION, "is a share of the card: it must be in (0, 1].", f"{UTILISATION}=0.5")
        return
    problems = _problems(run)
    for kind, problem in problems.items():
        others, candidates = problems.keys() - {kind}, _CANDIDATES[kind](run)
        enough = tuple(each for each in candidates if _problems(run.changed(each)).keys() <= others)[:2]
        advice = "" if enough else "It needs more cards, or larger ones."
        yield replace(problem, overrides=enough, remedy=remedy_sentence(problem.setting, enough, advice))


def _problems(run: RunConfig) -> dict[str, Finding]:
    """What a card has no room for, without remedies: the update, the rollout, or both of them at once."""
    held, card = estimate(run), card_gib(run)
    if held is None or card is None:
        return {}
    problems, limit, share = {}, card * GIB, run.number(UTILISATION)
    update, largest = Memory.total(held.update), max(held.update, key=lambda part: part.size)
    if update > limit:
        certain = sum(part.size for part in held.update[:3])  # weights, gradients, optimiser states
        message = f"GiB a card, and the update is estimated to take {update / GIB:.0f} ({largest.name}: "
        message += f"{largest.size / GIB:.0f})."
        problems["update"] = run.finding("error" if certain > limit else "warning", CARD, message)
    kept = _kept_by_the_trainer(held)
    if kept + share * limit > limit:
        message = f"of the card, and the {kept / GIB:.0f} GiB that the trainer keeps on it meanwhile, are more than "
        problems["both"] = run.warning(UTILISATION, message + "the whole.")
    weights = next(part.size for part in held.rollout if part.name == "weights")
    tokens, longest = held.kv_tokens or 0, min(run.max_model_len or math.inf, run.sequence_length)
    if weights > share * limit:
        message = f"has no room for the rollout's weights ({weights / GIB:.0f} GiB a card)."
        problems["rollout"] = run.error(UTILISATION, message)
    elif tokens < longest:
        message = f"leaves a KV cache of {tokens:.0f} tokens, and one sequence has {longest:.0f}."
        problems["rollout"] = run.error(UTILISATION, message)
    elif tokens < _FEW_SEQUENCES * longest:
        message = f"leaves a KV cache for {tokens / longest:.1f} full sequences: vLLM will preempt, and be slow."
        problems["rollout"] = run.warning(UTILISATION, message)
    return problems


def _kept_by_the_trainer(held: Memory) -> float:
    """Bytes that the trainer keeps on a card while it samples."""
    return sum(part.size for part in held.hybrid or held.rollout if part.name.startswith("trainer"))


def _for_the_update(run: RunConfig) -> Iterator[str]:
    if run.dynamic_batch:
        tokens, name = run.micro_batch_tokens or 0, f"{ACTOR}.ppo_max_token_len_per_gpu"
        least = math.ceil(run.sequence_length / run.context_parallel)
        while tokens > least:
            tokens = max(tokens // 2, least)
            yield f"{name}={tokens}"
    else:
        name, share = f"{ACTOR}.ppo_micro_batch_size_per_gpu", run.mini_batch_per_rank or 1
        yield from (f"{name}={size}" for size in range((run.micro_batch or 1) - 1, 0, -1) if share % size == 0)
    row = objective_of(run)
    if run.is_fsdp:
        yield f"{MODEL}.enable_gradient_checkpointing=True"
        yield f"{run.engine}.offload_policy=True"
    if row is None or not row.needs_top_k:
        yield f"{MODEL}.use_fused_kernels=True"
    yield f"{ROLLOUT}.free_cache_engine=True"


def _for_both(run: RunConfig) -> Iterator[str]:
    held, card = estimate(run), card_gib(run)
    assert held is not None and card is not None  # there would be no problem
    share = math.floor(100 - 100 * _kept_by_the_trainer(held) / (card * GIB)) / 100
    yield from [f"{UTILISATION}={share}"] if share > 0 else []
    yield f"{run.engine}.param_offload=True {run.engine}.optimizer_offload=True"


def _for_the_rollout(run: RunConfig) -> Iterator[str]:
    tenths, sizes = math.floor(10 * run.number(UTILISATION)) + 1, range(1, run.rollout_gpus_per_node + 1)
    yield from (f"{UTILISATION}={share / 10}" for share in range(tenths, 10))
    yield from (f"{ROLLOUT}.tensor_model_parallel_size={size}" for size in sizes if fits_rollout(run, size))


_CANDIDATES = {"update": _for_the_update, "both": _for_both, "rollout": _for_the_rollout}

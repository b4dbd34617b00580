"""Rules about Megatron's engine: the bridge, and what its dynamic context parallelism and padding go with."""

from __future__ import annotations

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, MODEL

_MEGATRON = f"{ACTOR}.megatron"
_DYNAMIC = f"{_MEGATRON}.dynamic_context_parallel"


@rule
def megatron(run: RunConfig) -> Findings:
    """Megatron has its bridge, and no dynamic context parallelism or padding with what verl refuses beside it."""
    if not run.is_megatron:
        return
    name = f"{_MEGATRON}.use_mbridge"
    if not run.get(name, True):
        yield run.error(name, "but verl's engine asserts that there is a bridge.", f"{name}=True")
    name = f"{_MEGATRON}.pad_to_length"
    if run.get(name, False) and run.get(f"{_MEGATRON}.router_replay.mode", "disabled") != "disabled":
        yield run.error(name, "is refused by verl's engine together with router replay.", f"{name}=False")
    if run.get(_DYNAMIC, False):
        yield from _dynamic_context_parallel(run)


def _dynamic_context_parallel(run: RunConfig) -> Findings:
    with_it = f"but {_DYNAMIC}=True"
    for name, default, wanted in (
        (f"{MODEL}.use_remove_padding", True, True),
        (f"{_MEGATRON}.pad_to_length", False, False),
        (f"{_MEGATRON}.override_transformer_config.fp8", None, None),
    ):
        if bool(run.get(name, default)) != bool(wanted):
            message = f"{with_it} {'needs it' if wanted else 'is refused with it'}."
            yield run.error(name, message, run.override(name, wanted), f"{_DYNAMIC}=False")
    name = f"{_MEGATRON}.virtual_pipeline_model_parallel_size"
    if run.get(name) not in (None, 1):
        yield run.error(name, f"{with_it} is refused with it.", f"{name}=null", f"{_DYNAMIC}=False")
    name = f"{_MEGATRON}.max_seqlen_per_dp_cp_rank"
    if not is_whole(run.get(name), 1):
        message = f"is not a whole number of at least 1, and {_DYNAMIC}=True reads it."
        yield run.error(name, message, f"{name}={run.sequence_length}", f"{_DYNAMIC}=False")
    ranks = run.data_parallel * run.context_parallel
    if ranks % 2:
        message = (
            f"needs an even number of data- and context-parallel ranks, and there {'is' if ranks == 1 else 'are'} "
        )
        yield run.error(_DYNAMIC, f"{message}{ranks}.", f"{_DYNAMIC}=False")

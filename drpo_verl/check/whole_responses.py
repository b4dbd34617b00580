"""What a method needs that looks at whole responses: the scope of a prefix or a sequence, or a sequence mask."""

from __future__ import annotations

from collections.abc import Mapping

from drpo_verl.check.method import objective_of
from drpo_verl.check.rule import Findings, Required, rule, unmet
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, POLICY_LOSS

_WHOLE = "a response has to be whole on one rank, and nobody has tested that it is where it is cut in pieces."
_REQUIRED: Mapping[str, Required] = {
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": Required((1, None), _WHOLE),
    f"{ACTOR}.ulysses_sequence_parallel_size": Required((1, None), _WHOLE),
    f"{ACTOR}.megatron.context_parallel_size": Required((1, None), _WHOLE),
    f"{ACTOR}.megatron.dynamic_context_parallel": Required((False, None), _WHOLE),
}


@rule
def whole_responses(run: RunConfig) -> Findings:
    """Where a method or a sequence mask looks at whole responses, no sequence or context parallelism cuts them."""
    row = objective_of(run)
    if row is None:
        return
    masks = any(run.get(f"{POLICY_LOSS}.sequence_mask.{key}") is not None for key in ("preset", "metric", "veto"))
    if masks or row.scope is not None:
        yield from unmet(run, _REQUIRED)

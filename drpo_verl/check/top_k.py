"""What a Top-K method needs: the engines that its log-probabilities travel through, from vLLM to the loss."""

from __future__ import annotations

from collections.abc import Mapping

from drpo_verl.check.method import objective_of
from drpo_verl.check.rule import Findings, Required, rule, unmet
from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, MODEL, POLICY_LOSS, ROLLOUT

_NO_SEQUENCE_PARALLEL = Required((1, None), "Top-K is not gathered across sequence-parallel ranks.")
_NO_PADDING = Required((False, None, 0), "the rows of Top-K would not be those of the padded logits.")


_MAX_LOGPROBS, _ALL = 20, -1
"""vLLM's default for max_logprobs, and its value for no limit."""


def _off(why: str) -> Required:
    return Required((False, None), why)


_REQUIRED: Mapping[str, Required] = {
    f"{ROLLOUT}.name": Required(("vllm",), "the Top-K log-probabilities come from vLLM."),
    f"{ACTOR}.strategy": Required(
        ("fsdp", "fsdp2", "megatron"), "Top-K is gathered from logits as FSDP's and Megatron's engines hand them over."
    ),
    f"{MODEL}.use_fused_kernels": _off("Top-K is gathered from the logits, which fused kernels never make."),
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": _NO_SEQUENCE_PARALLEL,
    f"{ACTOR}.ulysses_sequence_parallel_size": _NO_SEQUENCE_PARALLEL,
    f"{ROLLOUT}.disaggregation.enabled": _off("a disaggregated rollout does not return Top-K log-probabilities."),
    f"{ACTOR}.fsdp_config.pad_to_length": _NO_PADDING,
    f"{ACTOR}.megatron.pad_to_length": _NO_PADDING,
    f"{ACTOR}.megatron.dynamic_context_parallel": _off("verl's Megatron engine refuses to hand over logits with it."),
}


@rule
def top_k(run: RunConfig) -> Findings:
    """A Top-K method has the engines that its log-probabilities travel through."""
    row = objective_of(run)
    if row is None or not row.needs_top_k:
        return
    yield from unmet(run, _REQUIRED)
    name, wanted = f"{ROLLOUT}.custom.drpo_verl.top_k", run.get(f"{POLICY_LOSS}.top_k")
    if run.get(name) != wanted:
        message = f"but {POLICY_LOSS}.top_k={wanted}: the rollout has to return what the loss expects."
        yield run.error(name, message, run.override(name, wanted), advice=f"+method={run.loss_mode} ties the two.")
    name = f"{ROLLOUT}.engine_kwargs.vllm.max_logprobs"
    listed = run.get(name, _MAX_LOGPROBS)
    if is_whole(wanted) and is_whole(listed) and listed != _ALL and listed < wanted:
        message = f"but {POLICY_LOSS}.top_k={wanted}: vLLM refuses to return more."
        yield run.error(name, message, run.override(name, wanted), advice=f"+method={run.loss_mode} ties the two.")

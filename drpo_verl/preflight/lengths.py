"""Rules about lengths: prompt and response, the rollout engine's context, the model's."""

from __future__ import annotations

from collections.abc import Iterable

from drpo_verl.check.registry import rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import ROLLOUT, Run, is_whole


@rule
def lengths(run: Run) -> Iterable[Finding]:
    """The rollout's prompt and response lengths are those of the data."""
    for rollouts, datas in (("prompt_length", "max_prompt_length"), ("response_length", "max_response_length")):
        name, other = f"{ROLLOUT}.{rollouts}", f"data.{datas}"
        given, wanted = run.whole(name, 0), run.whole(other, 0)
        if given and wanted and given != wanted:
            yield run.warning(
                name,
                f"is not {other}={wanted}: the two are one length in verl's default.",
                f"Set {other} alone.",
            )


@rule
def context(run: Run) -> Iterable[Finding]:
    """Prompt and response fit into the rollout engine's context, and that into the model's positions."""
    name = f"{ROLLOUT}.max_model_len"
    given, room = run.get(name), run.max_model_len
    positions = run.architecture.max_positions if run.architecture else None
    if given is not None and not (is_whole(given) and given >= 1):
        yield run.error(name, "is not a whole number of at least 1.", "Set it, or leave it null for the model's.")
        return
    if given is not None and positions is not None and given > positions:
        yield run.error(
            name,
            f"is above the model's max_position_embeddings={positions}, which verl refuses.",
            f"Set it to at most {positions}.",
        )
    if room is None:
        return
    if given is None:
        name = "data.max_response_length"
    longest = run.prompt_length + run.response_length
    whose = f"the rollout's context of {room} tokens" + ("" if given else " (the model's)")
    if room <= run.prompt_length:
        yield run.error(name, f"but the longest prompt ({run.prompt_length}) fills {whose}.", f"Allow {longest}.")
    elif room < run.response_length:
        yield run.error(
            name, f"but no response can reach its {run.response_length} tokens in {whose}.", f"Allow {longest}."
        )
    elif room < longest:
        yield run.warning(
            name,
            f"but prompt {run.prompt_length} + response {run.response_length} are {longest} tokens, more than "
            f"{whose}: after a long prompt, responses are cut short without being told.",
            f"Allow {longest}.",
        )


@rule
def scheduler(run: Run) -> Iterable[Finding]:
    """vLLM's batch has room for its sequences, and for a whole prompt where it is not cut into chunks."""
    name = f"{ROLLOUT}.max_num_batched_tokens"
    tokens, sequences = run.whole(name, 8192), run.whole(f"{ROLLOUT}.max_num_seqs", 256)
    if tokens < sequences:
        yield run.error(
            name,
            f"is below max_num_seqs={sequences}, which vLLM refuses: each takes a token a step.",
            f"Set it to at least {sequences}, better 8192.",
        )
    elif not run.get(f"{ROLLOUT}.enable_chunked_prefill", True) and run.max_model_len and tokens < run.max_model_len:
        yield run.warning(
            name,
            f"is below the context of {run.max_model_len}, and enable_chunked_prefill is off: verl raises it, and "
            "with it vLLM's memory.",
            "Set enable_chunked_prefill to True.",
        )
    elif not run.on_cpu and tokens < 1024:
        yield run.warning(name, "makes prefilling slow.", "Set it to 8192 or more.")

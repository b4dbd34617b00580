"""Rules about lengths: prompt and response, the rollout engine's context, the model's."""

from __future__ import annotations

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ROLLOUT


@rule
def lengths(run: RunConfig) -> Findings:
    """The rollout's prompt and response lengths are those of the data."""
    for rollout_key, data_key in (("prompt_length", "max_prompt_length"), ("response_length", "max_response_length")):
        name, data_name = f"{ROLLOUT}.{rollout_key}", f"data.{data_key}"
        given, wanted = run.get(name), run.get(data_name)
        if None not in (given, wanted) and run.whole(name) != run.whole(data_name):
            message = f"is not {data_name}={wanted}: the two are one length in verl's default."
            yield run.warning(name, message, f"{name}={wanted}", advice=f"{data_name} alone sets both.")


@rule
def context(run: RunConfig) -> Findings:
    """Prompt and response fit into the rollout engine's context, and that into the model's positions."""
    name = f"{ROLLOUT}.max_model_len"
    given, room = run.get(name), run.max_model_len
    positions = run.architecture.max_positions if run.architecture else None
    if given is not None and not is_whole(given, 1):
        message = "is not a whole number of at least 1."
        yield run.error(name, message, f"{name}=null", advice="That takes the model's.")
        return
    if given is not None and positions is not None and given > positions:
        message = f"is above the model's max_position_embeddings={positions}, which verl refuses."
        yield run.error(name, message, f"{name}={positions}")
    if room is None or room >= run.sequence_length:
        return
    remedy = _more_room(run, positions)
    if given is None:
        name = "data.max_response_length"
    whose = f"the rollout's context of {room} tokens" + ("" if given else " (the model's)")
    if room <= run.prompt_length:
        yield run.error(name, f"but the longest prompt ({run.prompt_length}) fills {whose}.", remedy)
    elif room < run.response_length:
        yield run.error(name, f"but no response can reach its {run.response_length} tokens in {whose}.", remedy)
    else:
        message = f"but prompt {run.prompt_length} + response {run.response_length} are {run.sequence_length} tokens, "
        message += f"more than {whose}: after a long prompt, responses are cut short without being told."
        yield run.warning(name, message, remedy)


def _more_room(run: RunConfig, positions: int | None) -> str:
    """A context for the longest sequence; where the model has none, lengths that fit into the model's."""
    if positions is None or run.sequence_length <= positions:
        return f"{ROLLOUT}.max_model_len={run.sequence_length}"
    prompt = min(run.prompt_length, positions // 2)
    shorter = f"data.max_response_length={positions - prompt}"
    if prompt < run.prompt_length:
        shorter += f" data.max_prompt_length={prompt}"
    return shorter if run.get(f"{ROLLOUT}.max_model_len") is None else f"{shorter} {ROLLOUT}.max_model_len={positions}"


@rule
def scheduler(run: RunConfig) -> Findings:
    """vLLM's batch has room for its sequences, and for a whole prompt where it is not cut into chunks."""
    name, chunks = f"{ROLLOUT}.max_num_batched_tokens", f"{ROLLOUT}.enable_chunked_prefill"
    tokens, sequences = run.whole(name), run.whole(f"{ROLLOUT}.max_num_seqs")
    if tokens < sequences:
        message = f"is below max_num_seqs={sequences}, which vLLM refuses: each takes a token a step."
        yield run.error(name, message, f"{name}={max(8192, sequences)}")
    elif not run.get(chunks, True) and run.max_model_len and tokens < run.max_model_len:
        message = f"is below the context of {run.max_model_len}, and enable_chunked_prefill is off: verl raises it, "
        yield run.warning(name, message + "and with it vLLM's memory.", f"{chunks}=True")
    elif not run.on_cpu and tokens < 1024:
        yield run.warning(name, "makes prefilling slow.", f"{name}=8192", advice="Or to more.")

"""What verl passes over in silence ends a run: a sample whose rollout has failed, and a reward that is no number.

When an agent loop or a reward function raises, verl logs a traceback and goes on; in the synchronous trainer the group
is trained on without that sample. And verl takes whatever a reward function returns. In a run of ``drpo_verl.train``
both are errors that say what was raised, on which sample.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import time
from collections.abc import Mapping
from functools import wraps
from typing import Any

from drpo_verl.configuration.sections import RUN_VARIABLE
from drpo_verl.errors import UserError, describe_error, root_cause
from drpo_verl.seams import expect, expect_parameters

_ERROR, _FINAL = "drpo_verl_error", "drpo_verl_error_is_final"
"""Tags of a prompt in TransferQueue whose rollout has failed: why, and whether that of another prompt would, too."""

_SHOWN = 120
"""Characters of a ground truth that a message shows."""


class RewardError(UserError):
    """A reward function has failed, or has returned something else than a finite number."""


class RolloutError(UserError):
    """The rollout of a sample has failed."""


def _of_our_run() -> bool:
    # verl with this plugin, but started by its own command, is left as it is.
    return RUN_VARIABLE in os.environ


def require_number(score: object) -> float:
    """Return what a reward function has returned, as a number.

    Raises:
        RewardError: it is not a finite number.
    """
    try:
        value = math.nan if isinstance(score, str | bytes) else float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise RewardError(f"the reward function returned {score!r}, and has to return a finite number")
    return value


def check_rewards(worker: Any) -> None:
    """Have the reward loop's worker, verl's class, refuse what is no reward, and give up on what never comes."""
    original = worker.compute_score
    expect_parameters(original, "RewardLoopWorker.compute_score", "data")

    @wraps(original)
    async def compute_score(self: Any, data: Any) -> dict[str, Any]:
        if not _of_our_run():
            unchecked: dict[str, Any] = await original(self, data)
            return unchecked
        seconds, start = _patience(self.config), time.monotonic()
        try:
            result: dict[str, Any] = await asyncio.wait_for(original(self, data), seconds)
            require_number(result["reward_score"])
        except RewardError as error:
            raise RewardError(f"{error} {_sample(data)}") from None
        except Exception as error:
            if isinstance(error, asyncio.TimeoutError) and seconds and time.monotonic() - start >= seconds:
                raise RewardError(
                    f"the reward function has not returned within {seconds:g} s, half of run.stall_seconds "
                    f"{_sample(data)}"
                ) from None
            raise RewardError(f"the reward function raised {describe_error(error)} {_sample(data)}") from error
        return result

    worker.compute_score = compute_score


def _patience(config: Any) -> float | None:
    run = config.get("run") or {}
    seconds = run.get("stall_seconds")
    return seconds / 2 if seconds else None


def _sample(data: Any) -> str:
    """Name the sample whose reward it is, as far as verl's batch of it has what names it."""
    fields: Mapping[str, Any] = data.non_tensor_batch
    source, model = (fields[name][-1] if name in fields else None for name in ("data_source", "reward_model"))
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    return f"(data source {str(source)!r}, ground truth {str(truth)[:_SHOWN]!r})"


def refuse_empty_responses(output: Any) -> None:
    """Have verl's class of an agent loop's output say that a response has no token, which it fails on otherwise."""
    original = output.as_dict
    expect_parameters(output, "AgentLoopOutput", "response_ids")

    @wraps(original)
    def as_dict(self: Any) -> dict[str, Any]:
        if _of_our_run() and not self.response_ids:
            raise RolloutError(
                f"the response to a prompt of {len(self.prompt_ids)} tokens has no token, and nothing can be learned "
                "from it: an agent loop has to return at least the token that ends the response"
            )
        fields: dict[str, Any] = original(self)
        return fields

    output.as_dict = as_dict


def _is_final(error: BaseException) -> bool:
    cause = root_cause(error)
    # vLLM's server outlives its engine, whose error is this one; importing vLLM to ask for its class takes seconds.
    return isinstance(cause, RewardError) or type(cause).__name__ == "EngineDeadError"


def report_failures(worker: Any) -> None:
    """Have the agent loop's worker, verl's class, leave word of a failed sample, in a tag of its prompt."""
    original = worker._run_agent_loop
    expect_parameters(original, "AgentLoopWorker._run_agent_loop", "sampling_params", "trajectory", "agent_name")

    @wraps(original)
    async def _run_agent_loop(
        self: Any, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any
    ) -> Any:
        try:
            return await original(self, sampling_params, trajectory, **kwargs)
        except Exception as error:
            import transfer_queue as tq

            if _of_our_run() and "uid" in kwargs:  # not in verl's legacy trainer, where the exception ends the run
                tag = {_ERROR: describe_error(error), _FINAL: _is_final(error)}
                # Before verl marks the prompt as failed, which it does when all of its samples have come to an end.
                partition = "val" if trajectory["validate"] else "train"
                await tq.async_kv_put(key=kwargs["uid"], partition_id=partition, tag=tag)
            raise

    # Under the name of the original in its class, before Ray makes an actor's class of it: so it is pickled by name.
    worker._run_agent_loop = _run_agent_loop


def raise_failures(buffer: Any) -> None:
    """Have the trainer's replay buffer, verl's class, raise when a sample has failed.

    An asynchronous trainer replaces a failed prompt by another, as the synchronous one does with
    ``trainer.v1.sampler.sync_refill_failed_groups``: then only a failure that would come again ends the run, that of a
    reward function or of vLLM's engine.
    """
    original = buffer._sync_metadata_from_transfer_queue
    names = inspect.getsource(buffer.__init__)
    expect("self.failure_keys" in names and "self.trainer_mode" in names, "ReplayBuffer", "failure_keys, trainer_mode")

    @wraps(original)
    def _sync_metadata_from_transfer_queue(self: Any) -> None:
        original(self)
        failed = {partition: uids for partition, uids in self.failure_keys.items() if uids}
        if not failed or not _of_our_run():
            return
        import transfer_queue as tq

        replaced = self.trainer_mode != "sync" or getattr(self, "sync_refill_failed_groups", False)
        for partition, uids in failed.items():
            of_prompts = (tq.kv_list(partition) or {}).get(partition, {})
            tags = [of_prompts.get(uid, {}) for uid in sorted(uids)]
            fatal = [tag for tag in tags if tag.get(_FINAL) or not (replaced and partition == "train")]
            if fatal:
                raise RolloutError(_describe(fatal, partition))

    buffer._sync_metadata_from_transfer_queue = _sync_metadata_from_transfer_queue


def _describe(tags: list[dict[str, Any]], partition: str) -> str:
    errors = [tag[_ERROR] for tag in tags if _ERROR in tag] or ["see the logs"]
    which = "held-out prompts" if partition == "val" else "prompts"
    others = f" ({len(tags)} {which} failed so far)" if len(tags) > 1 else ""
    return f"a sample could not be rolled out: {errors[0]}{others}"

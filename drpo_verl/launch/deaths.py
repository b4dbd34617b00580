"""Which of a run's Ray actors have died without having been asked to: what a run can not go on after."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from drpo_verl import seams
from drpo_verl.errors import root_cause
from drpo_verl.launch.processes import processes_of, stopped, title

NOTICE_SECONDS = 2.0
MISSING_SECONDS = 20.0

_ROLES = {
    "WorkerDict": "a trainer's rank",
    "ActorRolloutRefWorker": "a trainer's rank",
    "CheckpointEngineWorker": "a rollout's rank",
    "vLLMHttpServer": "the vLLM server",
    "AgentLoopWorker": "an agent loop's worker",
    "RewardLoopWorker": "a reward's worker",
    "TaskRunner": "verl's trainer",
    "TransferQueueController": "TransferQueue's controller",
    "SimpleStorageUnit": "a storage unit of TransferQueue",
}
"""What an actor is for, by the beginning or end of its class's name."""

_CAUSES = {
    "WORKER_DIED": "its process is gone: killed, as when memory runs out, or crashed",
    "NODE_DIED": "its node is gone",
}
"""The reasons of Ray for a death that nobody asked for. The others are ends that verl or Ray has made."""


class DeathWatch:
    """Asks Ray what has died of this process's job, and this machine what has been stopped.

    Args:
        run: the value of ``RUN_VARIABLE`` in the environment of the run's processes.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._works = True

    def find(self) -> list[str]:
        """Return what has died by itself so far, each in words, the first death first; nothing without Ray."""
        import ray

        if not self._works or not ray.is_initialized():
            return []
        try:
            from ray._private.state import state

            job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
            actors = sorted(state.actor_table(None, job, "DEAD").values(), key=lambda actor: actor["EndTime"])
            return [death for actor in actors if (death := _describe(actor))]
        except (ImportError, AttributeError, LookupError, TypeError) as error:
            self._works = False
            seams.warn(
                f"could not ask Ray for its actors ({type(error).__name__}: {error}). The death of a process is "
                "noticed when verl next needs it, or after run.stall_seconds."
            )
            return []
        except Exception:  # Ray is just being started or ended
            return []

    def wait(self, error: BaseException) -> str | None:
        """Return the first death, of which Ray may know only after the error that it causes; None without any."""
        from ray.exceptions import RayActorError

        # An actor that does not answer may have gone with its node, which Ray finds out later.
        missing = isinstance(root_cause(error), RayActorError)
        deadline = time.monotonic() + (MISSING_SECONDS if missing else NOTICE_SECONDS)
        while not (deaths := self.find()) and self._works and time.monotonic() < deadline:
            time.sleep(0.2)
        return deaths[0] if deaths else None

    def stopped(self) -> list[str]:
        """Return the run's processes on this machine that a signal has stopped, each in words."""
        return [
            f"process {process} ({title(process)}) is stopped by a signal (kill -CONT {process})"
            for process in stopped(processes_of(self._run))
        ]


def _describe(actor: Mapping[str, Any]) -> str | None:
    """Say what has died and why; None for an end that was asked for."""
    cause = actor["DeathCause"]
    which = cause.WhichOneof("context")
    if which == "oom_context":
        why = "Ray has killed it, since its node ran out of memory"
    elif which == "actor_died_error_context":
        context = cause.actor_died_error_context
        reason = context.DESCRIPTOR.enum_types_by_name["Reason"].values_by_number[context.reason].name
        if reason not in _CAUSES or "INTENDED_" in context.error_message:
            return None
        why = _CAUSES[reason]
    elif which == "creation_task_failure_context":
        lines = cause.creation_task_failure_context.formatted_exception_string.strip().splitlines()
        why = f"it could not be started: {lines[-1] if lines else 'see the logs'}"
    else:
        return None
    name = actor["ActorClassName"].rpartition(".")[2]
    role = next((role for part, role in _ROLES.items() if name.startswith(part) or name.endswith(part)), "an actor")
    # verl names its ranks "<prefix>WorkerDict_<node>:<rank on the node>".
    rank = re.search(r"_(\d+:\d+)$", actor["Name"] or "")
    which_one = f"{name} {rank[1]}" if rank else name
    return f"{role} ({which_one}, process {actor['Pid']}) died: {why}"

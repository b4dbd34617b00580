"""What is said of an actor that has died, and of what a worker has raised."""

from __future__ import annotations

import time

import pytest
from ray.core.generated.common_pb2 import ActorDeathCause
from ray.exceptions import ActorUnavailableError, RayTaskError

from drpo_verl.errors import UserError, describe_error, root_cause
from drpo_verl.launch.deaths import DeathWatch, _describe

KILLED = "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2."
ENDED = "Worker exit type: INTENDED_SYSTEM_EXIT Worker exit detail: Worker exits because ..."


def _died(reason: str, message: str = "") -> ActorDeathCause:
    cause = ActorDeathCause()
    context = cause.actor_died_error_context
    context.reason = context.DESCRIPTOR.enum_types_by_name["Reason"].values_by_name[reason].number
    context.error_message = message
    return cause


def _actor(cause: ActorDeathCause, name: str = "vLLMHttpServer", ray_name: str = "") -> dict[str, object]:
    return {"DeathCause": cause, "ActorClassName": name, "Name": ray_name, "Pid": 7}


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (_died("WORKER_DIED", KILLED), "its process is gone: killed, as when memory runs out, or crashed"),
        (_died("NODE_DIED"), "its node is gone"),
        (_died("WORKER_DIED", ENDED), None),
        (_died("RAY_KILL"), None),
        (_died("OUT_OF_SCOPE"), None),
        (_died("OWNER_DIED"), None),
        (ActorDeathCause(), None),
    ],
)
def test_only_a_death_that_nobody_asked_for_is_one(cause: ActorDeathCause, said: str | None) -> None:
    expected = f"the vLLM server (vLLMHttpServer, process 7) died: {said}" if said else None
    assert _describe(_actor(cause)) == expected


def test_an_actor_that_could_not_be_made_and_one_that_ray_has_killed() -> None:
    failed, killed = ActorDeathCause(), ActorDeathCause()
    failed.creation_task_failure_context.formatted_exception_string = "Traceback ...\nImportError: no vllm\n"
    killed.oom_context.error_message = "Memory on the node was ..."
    assert str(_describe(_actor(failed))).endswith("died: it could not be started: ImportError: no vllm")
    assert str(_describe(_actor(killed))).endswith("died: Ray has killed it, since its node ran out of memory")


@pytest.mark.parametrize(
    ("name", "ray_name", "said"),
    [
        ("a.<locals>.WorkerDict", "x1WorkerDict_0:1", "a trainer's rank (WorkerDict 0:1, process 7)"),
        ("AgentLoopWorkerTQ", "agent_loop_worker_0_7a7886b5", "an agent loop's worker (AgentLoopWorkerTQ, process 7)"),
        ("TaskRunnerV1", "", "verl's trainer (TaskRunnerV1, process 7)"),
        ("Own", "", "an actor (Own, process 7)"),
    ],
)
def test_an_actor_is_called_by_what_it_is_for(name: str, ray_name: str, said: str) -> None:
    assert str(_describe(_actor(_died("NODE_DIED"), name, ray_name))).startswith(f"{said} died: ")


def test_without_ray_nothing_dies() -> None:
    watch = DeathWatch("no run")
    assert watch.find() == [] and watch.stopped() == []


class _Later(DeathWatch):
    """Ray finds out after half a second."""

    started = time.monotonic()

    def find(self) -> list[str]:
        return ["an actor died"] if time.monotonic() > self.started + 0.5 else []


def test_an_actor_that_does_not_answer_is_given_time_to_be_found_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drpo_verl.launch.deaths.NOTICE_SECONDS", 0.0)
    for error, said in ((ValueError("x"), None), (ActorUnavailableError("Socket closed", None), "an actor died")):
        monkeypatch.setattr(_Later, "started", time.monotonic())
        task = RayTaskError("step", "Traceback ...", error).as_instanceof_cause()
        assert _Later("no run").wait(task) == said


def test_an_error_is_the_innermost_one() -> None:
    inner = RayTaskError("score", "Traceback ...\nKeyError: 'x'", KeyError("x")).as_instanceof_cause()
    outer = RayTaskError("run", "Traceback ...", inner).as_instanceof_cause()
    assert isinstance(root_cause(outer), KeyError) and describe_error(outer) == "KeyError: 'x'"
    assert describe_error(ValueError("one\ntwo")) == "ValueError: one two"
    assert describe_error(RuntimeError("Traceback (most recent call last):\n ...\nOSError: full")) == (
        "RuntimeError: OSError: full"
    )
    assert describe_error(UserError("set x")) == "set x"
    assert describe_error(RuntimeError()) == "RuntimeError: "
    assert describe_error(RuntimeError("the engine is dead", "again")) == "RuntimeError: the engine is dead"

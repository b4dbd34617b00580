"""Every seam is as expected in the installed verl; one that differs is named, with what it costs, in a warning."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import verl.utils.tracking
import verl.workers.engine_workers
from model_hosting_container_standards.logging_config import configure_root_logger
from verl.workers.rollout.replica import get_rollout_replica_class

from benchmarks.actor import configuration
from drpo_verl.cpu import vllm_hooks
from drpo_verl.seams import SEAMS, SUPPORTED_VERL, SeamError, verl_version, warn


def test_every_seam_is_as_expected(failed_to_attach: list[str]) -> None:
    for seam in SEAMS:
        importlib.import_module(seam.module)
    assert get_rollout_replica_class("vllm").__name__ == "TopKReplica"
    ours = tuple(f"drpo-verl: could not attach to {seam.module} " for seam in SEAMS)
    assert not [message for message in failed_to_attach if message.startswith(ours)]


def _changed(name: str, **changes: Any) -> ModuleType:
    """A module that is as the foreign one but for some of its attributes."""
    module = ModuleType(name)
    vars(module).update({**vars(importlib.import_module(name)), **changes})
    return module


class _OtherTracking:
    def __init__(self, project_name: str, run_name: str) -> None: ...


class _OtherLog(verl.utils.tracking.Tracking.__mro__[1]):  # type: ignore[misc]  # verl's own
    def log(self, metrics: dict[str, Any]) -> None: ...


class _OtherAggregationType:
    def _get_aggregation_type(self, metric: str) -> str: ...


class _OtherLast:
    def _get_aggregation_type(self, metric_name: str) -> str: ...

    def _aggregate_single_metric(self, name: str, values: list[float]) -> float:
        return sum(values) / len(values)


class _OtherEngine:
    def _build_fsdp_module(self, module: Any) -> str:
        return "ShardedGradScaler()"


class _EngineWithoutScaler:
    def _build_module(self) -> None: ...

    def _build_fsdp_module(self, module: Any) -> None: ...


class _OtherReplayBuffer:
    def __init__(self, seconds: float) -> None: ...


class _ReplayBuffer:
    def __init__(self, poll_interval: float) -> None: ...


class _ReplayBufferOfBatches(_ReplayBuffer):
    def _materialize_batch(self, uids: list[str]) -> None: ...


class _ReplayBufferOfTags(_ReplayBuffer):
    def _materialize_batch(self, partition_id: str, selected_prompt_uids: list[str]) -> None: ...


class _OtherRewardWorker:
    def __init__(self, config: object) -> None: ...

    async def compute_score(self, batch: Any) -> dict[str, Any]: ...


class _OtherAgentLoopWorker:
    async def _run_agent_loop(self, sampling_params: dict[str, Any], prompt: Any, **kwargs: Any) -> None: ...


class _OtherManager:
    def generate_sequences(self, batch: object) -> None: ...


class _OtherClient:
    async def generate(self, request_id: str, prompt: object) -> None: ...


class _OtherWorker:
    def __init__(self, settings: object) -> None: ...

    async def _run_agent_loop(self, sampling_params: object, prompt: object) -> None: ...


class _OtherSamples:
    async def _run_agent_loop(self, sampling: object, kwargs: object) -> None: ...


_WEIGHT_SENDER = "verl.workers.rollout.vllm_rollout.vllm_rollout"
_WEIGHT_RECEIVER = "verl.workers.rollout.vllm_rollout.vllm_async_server"
_WRAPPED = {
    f"{_WEIGHT_SENDER}.ServerAdapter": ("__init__",),
    f"{_WEIGHT_RECEIVER}.vLLMHttpServer": ("__init__",),
    "verl.workers.engine.fsdp.transformer_impl.FSDPEngine": ("_build_module", "_build_fsdp_module"),
    "verl.experimental.agent_loop.agent_loop.AgentLoopOutput": ("as_dict",),
    "verl.trainer.ppo.v1.agent_loop_tq.AgentLoopManagerTQ": ("generate_sequences",),
    "verl.experimental.agent_loop.agent_loop.AgentLoopWorker": ("_run_agent_loop", "__init__"),
    "verl.workers.rollout.llm_server.LLMServerClient": ("generate",),
    "verl.trainer.ppo.v1.replay_buffer.ReplayBuffer": (
        "__init__",
        "_materialize_batch",
        "_sync_metadata_from_transfer_queue",
    ),
    "verl.workers.engine_workers.ActorRolloutRefWorker": ("init_model", "update_weights"),
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer": ("__init__",),
    "verl.experimental.reward_loop.reward_loop.RewardLoopWorker": ("__init__", "compute_score"),
}
_LOOP = "verl.experimental.agent_loop.agent_loop"
_BUFFER = "verl.trainer.ppo.v1.replay_buffer"
_GROUP = "initialize_global_process_group_ray"
DIFFERENT: list[tuple[str, dict[str, Any], str]] = [
    ("verl.workers.rollout.replica", {"RolloutReplicaRegistry": SimpleNamespace(_registry={})}, "an entry vllm"),
    (_WEIGHT_SENDER, {"ServerAdapter": _OtherWorker}, "that it sets zmq_handle"),
    (_WEIGHT_RECEIVER, {"vLLMHttpServer": _OtherWorker}, "that it tells vLLM the Ray job"),
    ("verl.workers.rollout.llm_server", {"LLMServerClient": _OtherClient}, "missing prompt_ids"),
    (_LOOP, {"AgentLoopWorker": _OtherSamples}, "missing sampling_params)"),
    (_LOOP, {"AgentLoopOutput": SimpleNamespace(model_fields={})}, "AgentLoopOutput: expected its tokens"),
    ("verl.utils.tracking", {"Tracking": _OtherTracking}, "missing experiment_name, default_backend, config"),
    ("verl.utils.tracking", {"Tracking": _OtherLog}, "missing data, step"),
    ("verl.utils.config", {"validate_config": lambda settings: None}, "missing config"),
    ("verl.trainer.ppo.v1.trainer_base", {"rename_dict": lambda data: data}, "missing prefix"),
    ("verl.trainer.ppo.ray_trainer", {"rename_dict": lambda data: data}, "missing prefix"),
    ("verl.trainer.ppo.v1.utils", {"MetricsAggregator": _OtherAggregationType}, "missing metric_name"),
    ("verl.trainer.ppo.v1.utils", {"MetricsAggregator": _OtherLast}, "expected that lr is the last"),
    ("verl.workers.engine.fsdp.transformer_impl", {"EngineRegistry": None}, "'NoneType'"),
    ("verl.workers.engine.fsdp.transformer_impl", {"FSDPEngine": _OtherEngine}, "FSDPEngine._build_module"),
    ("verl.workers.engine.fsdp.transformer_impl", {"FSDPEngine": _EngineWithoutScaler}, "a ShardedGradScaler"),
    ("verl.utils.fsdp_utils", {"fsdp2_sharded_save_to_cpu": lambda module: None}, "missing model"),
    ("verl.utils.distributed", {_GROUP: lambda timeout: None}, "missing timeout_second, backend"),
    ("verl.utils.distributed", {"create_tcp_store": lambda host: None}, "missing listen_socket"),
    (_BUFFER, {"ReplayBuffer": _OtherReplayBuffer}, "missing poll_interval"),
    (_BUFFER, {"ReplayBuffer": _ReplayBufferOfBatches}, "missing partition_id, selected_prompt_uids"),
    (_LOOP, {"AgentLoopWorker": _OtherWorker}, "missing kwargs"),
    ("verl.trainer.ppo.v1.agent_loop_tq", {"AgentLoopManagerTQ": _OtherManager}, "missing prompts"),
    ("verl.workers.rollout.llm_server", {"LLMServerClient": _OtherClient}, "missing prompt_ids, sampling_params"),
    ("verl.workers.engine_workers", {"ActorRolloutRefWorker": _OtherWorker}, "missing config, role"),
    ("verl.trainer.ppo.v1.trainer_base", {"PPOTrainer": _OtherWorker}, "missing config"),
    ("verl.experimental.reward_loop.reward_loop", {"RewardLoopWorker": _OtherWorker}, "missing config"),
    (_BUFFER, {"ReplayBuffer": _ReplayBuffer, "ReplayBufferAsync": _OtherReplayBuffer}, "expected ReplayBuffer's"),
    (_BUFFER, {"ReplayBuffer": _ReplayBufferOfTags}, "no attribute '_sync_metadata_from_transfer_queue'"),
    (_LOOP, {"AgentLoopWorker": _OtherAgentLoopWorker}, "missing trajectory, agent_name"),
    ("verl.experimental.reward_loop.reward_loop", {"RewardLoopWorker": _OtherRewardWorker}, "missing data"),
]  # fmt: skip


def _warning_of(name: str, module: ModuleType, caplog: pytest.LogCaptureFixture) -> str:
    """The warnings of attaching to a module; each names the module, the consequence, and the versions."""
    messages = []
    for seam in (each for each in SEAMS if each.module == name):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="drpo_verl"):
            seam.attach(module)
        for record in (each for each in caplog.records if each.name == "drpo_verl"):
            message = record.getMessage()
            assert message.startswith(f"drpo-verl: could not attach to {name} (") and seam.consequence in message
            assert f"verl {verl_version()}" in message and str(SUPPORTED_VERL) in message
            messages.append(message)
    return "\n".join(messages)


@pytest.fixture(autouse=True)
def _verl_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back, after each test, what attaching once more wraps once more."""
    for name, methods in _WRAPPED.items():
        module, _, class_name = name.rpartition(".")
        owner = getattr(importlib.import_module(module), class_name)
        for method in methods:
            monkeypatch.setattr(owner, method, getattr(owner, method))


@pytest.mark.parametrize(("name", "changes", "expected"), DIFFERENT)
def test_a_seam_that_differs_is_named(
    name: str, changes: dict[str, Any], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert expected in _warning_of(name, _changed(name, **changes), caplog)


def test_an_agent_loop_that_is_made_otherwise_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "agent_loop.py").write_text("import hydra\n")
    spec = importlib.util.spec_from_file_location("agent_loop", tmp_path / "agent_loop.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "expected one call of hydra.utils.instantiate, found 0" in _warning_of(_LOOP, module, caplog)


_ADAPTERS = {"verl.trainer.ppo.core_algos": "policy_loss", "verl.workers.engine_workers": "actor"}


@pytest.mark.parametrize(
    ("changed", "value", "expected"),
    [
        ("verl.trainer.ppo.core_algos.agg_loss", lambda loss_mat: None, "missing loss_mask, loss_agg_mode"),
        ("verl.trainer.ppo.core_algos.POLICY_LOSS_REGISTRY", {}, "verl has no loss mode 'vanilla'"),
        ("verl.workers.engine_workers.TrainingWorker.set_loss_fn", lambda self, loss: None, "missing loss_fn"),
        ("verl.workers.engine_workers.TrainingWorker.train_mini_batch", lambda self: None, "missing data"),
        ("verl.workers.engine_workers.TrainingWorker.save_checkpoint", lambda self: None, "missing local_path"),
        ("verl.workers.engine_workers.TrainingWorker.load_checkpoint", lambda self: None, "missing local_path"),
        ("verl.workers.engine_workers.ActorRolloutRefWorker.actor_worker_cls", None, "found None"),
        ("verl.workers.engine_workers.ActorRolloutRefWorker.update_weights", None, "a coroutine function"),
        ("verl.workers.utils.losses.ppo_loss", lambda config, outputs: None, "missing model_output, data, dp_group"),
    ],
)
def test_what_the_losses_and_the_actor_need_is_named(
    changed: str, value: Any, expected: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = next((name for name in _ADAPTERS if changed.startswith(name)), "verl.workers.engine_workers")
    # As in a process that has not attached to it yet.
    monkeypatch.delitem(sys.modules, f"drpo_verl.adapters.{_ADAPTERS[name]}", raising=False)
    workers = verl.workers.engine_workers
    monkeypatch.setattr(workers.ActorRolloutRefWorker, "actor_worker_cls", workers.TrainingWorker)
    monkeypatch.setattr(changed, value)
    assert expected in _warning_of(name, importlib.import_module(name), caplog)


def test_a_vllm_server_that_takes_other_arguments_is_named(
    random_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration("method=dppo_topk_tv", f"actor_rollout_ref.model.path={random_policy}").actor_rollout_ref
    replica = get_rollout_replica_class("vllm")
    assert replica(0, config.rollout, config.model).server_class.__ray_actor_class__.__name__ == "TopKServer"

    async def generate(self: Any, prompt: list[int]) -> None: ...

    monkeypatch.setattr("verl.workers.rollout.vllm_rollout.vllm_async_server.vLLMHttpServer.generate", generate)
    with pytest.raises(SeamError, match=r"vLLMHttpServer\.generate: .*missing prompt_ids, request_id"):
        replica(0, config.rollout, config.model)


def test_linear_layers_of_vllm_that_are_packed_otherwise_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm", lambda layer: None)
    monkeypatch.setattr("drpo_verl.seams.SEAMS", [])
    with caplog.at_level(logging.WARNING, logger="drpo_verl"):
        vllm_hooks.register.__wrapped__()
    assert "missing remove_weight). A weight sync may fail." in caplog.text


def test_warnings_are_seen_where_vllm_is_imported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    for each in (root, *root.handlers):
        monkeypatch.setattr(each, "level", each.level)  # as it was, afterwards
    warn("a first warning")
    assert capsys.readouterr().err == ""
    configure_root_logger()  # as vLLM's import does
    warn("a second warning")
    assert capsys.readouterr().err == "drpo-verl: a second warning\n"


def test_each_seam_has_its_case() -> None:
    tested = {name for name, _, _ in DIFFERENT} | set(_ADAPTERS)
    # Hydra is asked for its public interface; and what the workaround of the last one mends may be missing.
    untested = {"hydra", "verl.trainer.ppo.v1.trainer_separate_async"}
    assert {seam.module for seam in SEAMS if not seam.module.startswith("vllm.")} == tested | untested

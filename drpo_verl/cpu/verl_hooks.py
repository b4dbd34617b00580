"""Makes verl run on a CPU; the plugin imports it under ``VERL_PLATFORM=cpu``, in every process of a run."""

from __future__ import annotations

import inspect
import os
import socket
from functools import wraps
from types import ModuleType
from typing import Any

from drpo_verl.cpu import platform as _registers_the_platform  # noqa: F401
from drpo_verl.cpu import vllm_distribution
from drpo_verl.seams import expect, expect_parameters, when_imported

vllm_distribution.install()
os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")


@when_imported("verl.workers.engine.fsdp.transformer_impl", "There is no FSDP2 engine for a CPU.")
def _engine(module: ModuleType) -> None:
    # verl registers its FSDP engines for cuda and npu. The same class runs on a CPU with fsdp2 (not with FSDP1, whose
    # sync_module_states refuses CPU parameters).
    engine = module.FSDPEngineWithLMHead
    if "cpu" not in module.EngineRegistry._engines.get("language_model", {}).get("fsdp2", {}):
        module.EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")(engine)


@when_imported(
    "verl.workers.engine.fsdp.transformer_impl", "In fp16, small gradients are lost: nothing scales the loss."
)
def _gradient_scaler(module: ModuleType) -> None:
    # verl makes a gradient scaler for CUDA, which disables itself, with no more than a warning of torch, where there is
    # none.
    original = module.FSDPEngine._build_fsdp_module
    expect("ShardedGradScaler(" in inspect.getsource(original), "FSDPEngine._build_fsdp_module", "a ShardedGradScaler")

    @wraps(original)
    def build_fsdp_module(self: Any, *args: Any, **kwargs: Any) -> Any:
        built = original(self, *args, **kwargs)
        if self.scaler is not None and not self.scaler.is_enabled():
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

            self.scaler = ShardedGradScaler("cpu", growth_interval=400)  # verl's interval
        return built

    module.FSDPEngine._build_fsdp_module = build_fsdp_module


@when_imported("verl.utils.distributed", "torch.distributed can not be initialised.")
def _process_group(module: ModuleType) -> None:
    # verl asks for the backend "cpu:gloo,<device>:<backend>"; torch refuses the device "cpu" twice. And torch's own
    # rendezvous listens on every interface, which the ranks of one machine do not need.
    name = "initialize_global_process_group_ray"
    original = getattr(module, name)
    expect_parameters(original, f"verl.utils.distributed.{name}", "timeout_second", "backend")
    expect_parameters(module.create_tcp_store, "verl.utils.distributed.create_tcp_store", "host", "listen_socket")

    @wraps(original)
    def initialise(timeout_second: int | None = None, backend: str | None = None) -> Any:
        import torch.distributed as dist

        host, port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
        if port and host.startswith("127.") and not dist.is_initialized():
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            listen = socket.create_server((host, port)) if rank == 0 else None
            store = module.create_tcp_store(host, port, listen, world_size=world_size, is_master=rank == 0)
            dist.init_process_group(backend or "cpu:gloo", store=store, rank=rank, world_size=world_size)
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    vars(module)[name] = initialise


@when_imported("verl.trainer.ppo.v1.replay_buffer", "Each step waits up to two seconds for its rollouts.")
def _replay_buffer(module: ModuleType) -> None:
    # The trainer polls for finished rollouts every 2 s, which is longer than a whole step of a small model.
    original = module.ReplayBuffer.__init__
    expect_parameters(original, "ReplayBuffer.__init__", "poll_interval")
    expect(module.ReplayBufferAsync.__init__ is original, "ReplayBufferAsync.__init__", "ReplayBuffer's")

    @wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{"poll_interval": 0.05, **kwargs})

    module.ReplayBuffer.__init__ = initialise


@when_imported("verl.experimental.agent_loop.agent_loop", "Each trajectory takes some milliseconds more.")
def _agent_loops(module: ModuleType) -> None:
    # verl makes an agent loop for every trajectory by hydra's instantiate, which copies and merges its arguments as
    # configuration: on a CPU, a quarter of the time of a short rollout. verl's own loops have nothing to merge.
    original = module.hydra.utils.instantiate
    calls = inspect.getsource(module).count("hydra.utils.instantiate(")
    expect(calls == 1, module.__name__, f"one call of hydra.utils.instantiate, found {calls}")

    def instantiate(config: Any, **arguments: Any) -> Any:
        if isinstance(config, dict) and list(config) == ["_target_"]:
            return module.hydra.utils.get_class(config["_target_"])(**arguments)
        return original(config, **arguments)

    utils = _WithReplacements(module.hydra.utils, instantiate=instantiate)
    vars(module)["hydra"] = _WithReplacements(module.hydra, utils=utils)


class _WithReplacements:
    """A module with some attributes replaced, to be seen by one of its users only."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self._module = module
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@when_imported("verl.trainer.ppo.v1.trainer_separate_async", "It fails with hybrid_engine=False: info() got 'flush'.")
def _separate_async(module: ModuleType) -> None:
    # Without hybrid replicas, verl 0.9.1 calls logger.info(..., flush=True), as if it were print; 0.9.0 does not.
    if "flush=True" not in inspect.getsource(module):
        return
    logger = module.logger
    original = logger.info

    def info(message: object, *args: object, flush: bool = False, **kwargs: Any) -> None:
        original(message, *args, **kwargs)

    logger.info = info

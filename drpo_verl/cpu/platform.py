"""verl's platform interface for a CPU: torch.cpu, gloo, and Ray's logical GPU resource as worker slots."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

CPU = torch.device("cpu")

# What the rollout engine's process has to be told as well.
_ROLLOUT_ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_TARGET_DEVICE",
)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Caches, allocators and streams that a CPU does not have."""


def _peak_memory(*args: Any, **kwargs: Any) -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident_memory(*args: Any, **kwargs: Any) -> int:
    return psutil.Process().memory_info().rss


def _free_and_total_memory(*args: Any, **kwargs: Any) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _device_module() -> ModuleType:
    """torch.cpu, with what verl asks of a device module in the manner of torch.cuda and torch.cpu lacks."""
    module = ModuleType("drpo_verl.cpu.torch_cpu")
    vars(module).update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")})
    vars(module).update(
        current_device=lambda: CPU,
        device_count=lambda: 1,
        empty_cache=_nothing,
        get_device_name=lambda *args: "CPU",
        get_rng_state=lambda *args: torch.get_rng_state(),
        ipc_collect=_nothing,
        is_available=lambda: True,
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        max_memory_allocated=_peak_memory,
        max_memory_reserved=_peak_memory,
        mem_get_info=_free_and_total_memory,
        memory_allocated=_resident_memory,
        memory_reserved=_resident_memory,
        reset_peak_memory_stats=_nothing,
        set_device=_nothing,
        set_rng_state=lambda state, *args: torch.set_rng_state(state),
        synchronize=_nothing,
    )
    return module


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """A host without an accelerator. Memory figures are those of the process or of the machine."""

    _module = _device_module()

    @property
    def device_name(self) -> str:
        """The torch device type."""
        return "cpu"

    @property
    def vendor_name(self) -> str:
        """No vendor's engine variants apply."""
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        """What verl uses as ``torch.<device>``."""
        return self._module

    def is_available(self) -> bool:
        """A CPU always is."""
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Never auto-detected, so that it can not hide an accelerator: only ``VERL_PLATFORM=cpu`` selects it."""
        return False

    def current_device(self) -> torch.device:  # type: ignore[override]
        """The device itself: verl passes this on to ``Tensor.to``, where an index would mean a GPU."""
        return CPU

    def device_count(self) -> int:
        """One."""
        return 1

    def set_device(self, device_index: int) -> None:
        """There is only one."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Work on a CPU is done when the call returns."""

    def manual_seed(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """No caching allocator."""

    def empty_cache(self) -> None:
        """No caching allocator."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """None to speak of."""
        return None, None

    def communication_backend_name(self) -> str:
        """torch.distributed's backend."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """What Ray sets for the logical GPU that stands for a worker slot."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        """No profiler ranges."""
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def ray_resource_name(self) -> str:
        """verl's resource pools know only GPU and NPU; ``ray.init(num_gpus=n)`` makes n of them worker slots."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Nothing that Ray sets is in the way."""
        return []

    def is_ipc_supported(self) -> bool:
        """No device memory to share: verl then sends weights through shared host memory."""
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        """The settings of vLLM's CPU backend, as far as they are set here."""
        return {name: os.environ[name] for name in _ROLLOUT_ENVIRONMENT if name in os.environ}

    def cudart(self) -> None:
        """No CUDA runtime."""

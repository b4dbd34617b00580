"""verl's platform interface for a CPU, with torch.cpu, gloo, and Ray's logical GPU resource as worker slots."""

from __future__ import annotations

import os
import resource
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

CPU = torch.device("cpu")

# Environment variables that the process of the rollout engine needs as well.
_ROLLOUT_ENVIRONMENT = ("OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_TARGET_DEVICE")


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for what is about devices, caches, allocators, streams or profilers, which a CPU does not have."""


def _peak_memory(*args: Any, **kwargs: Any) -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident_memory(*args: Any, **kwargs: Any) -> int:
    return psutil.Process().memory_info().rss


def _free_and_total_memory(*args: Any, **kwargs: Any) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _device_module() -> ModuleType:
    """Return torch.cpu with the functions of torch.cuda that verl calls and torch.cpu lacks."""
    module = ModuleType("drpo_verl.cpu.torch_cpu")
    vars(module).update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")})
    vars(module).update(
        current_device=lambda: CPU,
        device_count=lambda: 1,
        empty_cache=_do_nothing,
        get_device_name=lambda *args: "CPU",
        get_rng_state=lambda *args: torch.get_rng_state(),
        ipc_collect=_do_nothing,
        is_available=lambda: True,
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        max_memory_allocated=_peak_memory,
        max_memory_reserved=_peak_memory,
        mem_get_info=_free_and_total_memory,
        memory_allocated=_resident_memory,
        memory_reserved=_resident_memory,
        reset_peak_memory_stats=_do_nothing,
        set_device=_do_nothing,
        set_rng_state=lambda state, *args: torch.set_rng_state(state),
        synchronize=_do_nothing,
    )
    return module


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """A host without an accelerator, whose memory figures are those of the process or of the machine."""

    device_name = "cpu"
    vendor_name = "cpu"  # verl has no variants of its engines for it
    device_module = _device_module()
    set_device = synchronize = set_allocator_settings = empty_cache = _do_nothing
    profiler_start = profiler_stop = cudart = _do_nothing
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)

    def is_available(self) -> bool:
        """Return True: a CPU is always available."""
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Return False: only ``VERL_PLATFORM=cpu`` selects the CPU, so that it never hides an accelerator."""
        return False

    def current_device(self) -> torch.device:  # type: ignore[override]
        """Return the device itself: verl passes it to ``Tensor.to``, where an index would mean a GPU."""
        return CPU

    def device_count(self) -> int:
        """Return 1."""
        return 1

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """Return no capability, which only CUDA devices have."""
        return None, None

    def communication_backend_name(self) -> str:
        """Return torch.distributed's backend, "gloo"."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Return the variable that Ray sets for the logical GPU which is a worker slot."""
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> AbstractContextManager[None]:
        """Return a context without a profiler range."""
        return nullcontext()

    def ray_resource_name(self) -> str:
        """Return "GPU": verl's resource pools know only GPU and NPU; ``ray.init(num_gpus=n)`` makes n worker slots."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Return no variables: nothing that Ray sets is in the way."""
        return []

    def is_ipc_supported(self) -> bool:
        """Return False: there is no device memory to share, and verl sends weights through shared host memory."""
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        """Return the settings of vLLM's CPU backend that are set in this process."""
        return {name: os.environ[name] for name in _ROLLOUT_ENVIRONMENT if name in os.environ}

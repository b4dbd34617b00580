"""verl's platform interface for a CPU, with torch.cpu, gloo, and Ray's logical GPU resource as worker slots."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

CPU = torch.device("cpu")

# Environment variables that the process of the rollout engine needs as well.
_ROLLOUT_ENVIRONMENT = ("OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_TARGET_DEVICE")


def _always(answer: Any) -> Callable[..., Any]:
    """Return a function, or a method, with the same answer to whatever it is asked."""
    return lambda *args, **kwargs: answer


# Stands in for what is about devices, caches, allocators, streams or profilers, which a CPU does not have.
_do_nothing = _always(None)


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
        current_device=_always(CPU),
        device_count=_always(1),
        empty_cache=_do_nothing,
        get_device_name=_always("CPU"),
        get_rng_state=lambda *args: torch.get_rng_state(),
        ipc_collect=_do_nothing,
        is_available=_always(True),
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

    is_available = _always(True)
    is_platform_available = _always(False)  # only VERL_PLATFORM=cpu selects the CPU: it never hides an accelerator
    current_device = _always(CPU)  # verl passes it to ``Tensor.to``, where an index would mean a GPU
    device_count = _always(1)
    get_device_capability = _always((None, None))  # which only CUDA devices have
    communication_backend_name = _always("gloo")
    visible_devices_envvar = _always("CUDA_VISIBLE_DEVICES")  # Ray sets it for the logical GPU that is a worker slot
    nvtx_range = _always(nullcontext())
    ray_resource_name = _always("GPU")  # verl's pools know GPU and NPU; ``ray.init(num_gpus=n)`` makes n worker slots
    ray_noset_envvars = _always([])  # nothing that Ray sets is in the way
    is_ipc_supported = _always(False)  # no device memory to share: verl sends weights through shared host memory

    def rollout_env_vars(self) -> dict[str, str]:
        """Return the settings of vLLM's CPU backend that are set in this process."""
        return {name: os.environ[name] for name in _ROLLOUT_ENVIRONMENT if name in os.environ}

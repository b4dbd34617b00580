"""The device that offline engines run on, and the environment variables that they need there."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from drpo_verl import cpu
from drpo_verl.configuration.search_path import config_dir
from drpo_verl.errors import require_option

_CPU_RUN = "hardware/cpu.yaml"
_NEEDED = ("VERL_PLATFORM", "OMP_", "TORCH_", "VLLM_", "TOKENIZERS_")


def device_type() -> str:
    """Return the torch device type, "cuda" for one; ``VERL_PLATFORM=cpu`` chooses the CPU of a machine with more."""
    import torch

    usable = torch.accelerator.is_available() and not cpu.is_selected()
    accelerator = torch.accelerator.current_accelerator() if usable else None
    return "cpu" if accelerator is None else accelerator.type


def require_memory_share(settings: Any) -> None:
    """Refuse an option ``gpu_memory_utilization`` that has no meaning.

    Args:
        settings: the options of a command; None for the option is vLLM's own default.

    Raises:
        UserError: with the option, its value and the remedy.
    """
    if (share := settings.gpu_memory_utilization) is None:
        return
    require = partial(require_option, settings, "gpu_memory_utilization")
    require(0 < share <= 1, "is a share of each card's memory: it must be above 0 and at most 1.")
    message = "is for cards, and the device here is cpu: VLLM_CPU_KVCACHE_SPACE sets the GiB of vLLM's cache there."
    require(device_type() != "cpu", message)


def engine_environment(device: str, model: str) -> dict[str, str]:
    """Return the environment variables that an engine needs and the user has not set.

    On a CPU they are those of a training run there, so that vLLM samples as it does in training.

    Args:
        device: a torch device type, see ``device_type``.
        model: a folder or a name on the hub.
    """
    variables: dict[str, str] = {}
    if device == "cpu":
        run: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / _CPU_RUN))
        of_run = run["ray_kwargs"]["ray_init"]["runtime_env"]["env_vars"]
        variables = {name: str(value) for name, value in of_run.items() if name.startswith(_NEEDED)}
        # The processes of a run share the cores; offline engines run one after the other.
        variables["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        variables["VLLM_TARGET_DEVICE"] = "cpu"
    if Path(model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"  # there is nothing to ask for
    return {name: value for name, value in variables.items() if name not in os.environ}

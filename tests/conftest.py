"""Shared by all tiers. The CPU platform is chosen before anything can import verl."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from read_once import each_file_is_read_once

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


@pytest.fixture(scope="session", autouse=True)
def _compositions_read_each_file_once() -> Iterator[None]:
    with each_file_is_read_once():
        yield

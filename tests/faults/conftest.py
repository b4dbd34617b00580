"""The runs into which faults are injected, and the times that their ends take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults import Chain, Times


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """One run in many parts, each of which a fault ends."""
    return Chain(tmp_path_factory.mktemp("chain") / "chain")


@pytest.fixture(scope="session")
def times(tmp_path_factory: pytest.TempPathFactory) -> Times:
    """Where the times go: FAULT_TIMES in the environment (`make test-faults`), from which docs/reliability.md is."""
    return Times(Path(os.environ.get("FAULT_TIMES", tmp_path_factory.mktemp("times") / "times.jsonl")))

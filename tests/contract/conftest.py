"""Shared by the contract tests."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from wheels import ROOT, build_wheel


class _Attaching(logging.Handler):
    """Keeps the warnings of seams that were not as expected."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "could not attach" in (message := record.getMessage()):
            self.failed.append(message)


_ATTACHING = _Attaching()
logging.getLogger("drpo_verl").addHandler(_ATTACHING)  # before anything imports verl


@pytest.fixture
def failed_to_attach() -> list[str]:
    """The warnings of seams that were not as expected when this process imported verl's modules."""
    return list(_ATTACHING.failed)


@pytest.fixture(autouse=True)
def warnings_are_captured(caplog: pytest.LogCaptureFixture) -> None:
    """Importing vLLM sets the levels of all handlers to ERROR, that of ``caplog`` too."""
    caplog.set_level(logging.WARNING)


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random policy: no warm-up is needed to compare ranks."""
    from benchmarks.actor import random_model
    from drpo_verl.models.tiny_model import TinyPolicyRecipe

    folder = tmp_path_factory.mktemp("model")
    random_model(TinyPolicyRecipe(), folder)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))

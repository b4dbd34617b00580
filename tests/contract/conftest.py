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
    import torch

    from drpo_verl.models import tiny_model

    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_model.build_tokenizer()
    torch.manual_seed(0)
    tiny_model.build_model(tiny_model.TinyPolicyRecipe(), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))

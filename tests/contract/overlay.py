"""Packages that `make test-contract` installs beside the environment, for the processes of single tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

OLDEST_VERL = "0.9.0"


def overlay(name: str) -> Path:
    """The folder of packages that goes first on a process's path, from ``requirements/<name>.txt``.

    Without it the test is skipped, and fails where ``CI`` is set.
    """
    folder = Path(sys.prefix, name)
    if not folder.is_dir():
        reason = f"{folder} is not there: `make test-contract` installs it"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder

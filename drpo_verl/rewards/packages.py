"""Packages that decide rewards: one that is missing is an error, never a wrong answer."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, package: str) -> ModuleType:
    """Import a module that decides rewards.

    Args:
        module: name of the module.
        package: name of the package to install for it.

    Raises:
        ImportError: it can not be imported; the remedy is in one line, since no more is shown of a worker's error.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the reward needs {package}, which can not be imported ({error}). Install it on every node: "
            f"pip install {package}, or all of 'drpo-verl[train]'.",
            name=module,
        ) from error

"""Packages with methods of their own: loading them, and the folders of their configuration groups."""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from drpo_verl import seams

_OURS = "drpo_verl"
_CONFIG_DIRS: list[Path] = []


def add_config_dir(folder: Path | str) -> None:
    """Let Hydra find the configuration groups of another package beside ours, in every run that is composed from now on.

    Args:
        folder: with a folder for each group, as ``method/<name>.yaml``.

    Raises:
        FileNotFoundError: when there is no such folder.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        # verl reports what goes wrong in a plugin at DEBUG level only, and it is plugins that call this.
        seams.warn(f"{folder} is not a folder: the configuration groups that are meant to be in it are not found.")
        raise FileNotFoundError(folder)
    if folder not in _CONFIG_DIRS:
        _CONFIG_DIRS.append(folder)


def config_dirs() -> list[Path]:
    """The folders of configuration groups that other packages have added."""
    load_plugins()
    return list(_CONFIG_DIRS)


@cache
def load_plugins() -> None:
    """Load the packages that add methods, as verl does: it takes them by entry point, or from an environment variable.

    Without any, verl is not imported. Other than by verl, it is said when one can not be loaded.
    """
    others = [each for each in entry_points(group="verl.plugins") if each.name != _OURS and _is_enabled(each)]
    if not others and not os.environ.get("VERL_USE_EXTERNAL_MODULES"):
        return
    import verl  # noqa: F401

    for plugin in others:
        try:
            plugin.load()
        except Exception as error:
            seams.warn(
                f"verl's plugin {plugin.name!r} could not be loaded ({type(error).__name__}: {error}). A method that it "
                f"registers is not known. `python -c 'import {plugin.module}'` shows where the error is."
            )


def _is_enabled(plugin: EntryPoint) -> bool:
    # As verl/__init__.py reads it.
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    return policy == "auto" or plugin.name in map(str.strip, policy.split(","))

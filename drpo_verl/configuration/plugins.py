"""Other packages that verl loads as plugins: they may register methods and have configuration groups for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from drpo_verl.seams import allows_plugin

CONFIG_FOLDER = "hydra_configs"
"""The folder of configuration groups, in a package that registers methods or beside a module that does."""


def plugin_modules() -> list[str]:
    """The modules beside ours that ``import verl`` imports in every process of a run, found without importing them."""
    modules = [
        *os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(","),
        *(each.module for each in _installed() if allows_plugin(each.name)),
    ]
    return [module for module in modules if module and module.partition(".")[0] != "drpo_verl"]


@cache
def _installed() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group="verl.plugins"))


def plugin_config_dirs() -> list[Path]:
    """The folders of configuration groups of those modules, found without importing them."""
    specs = [find_spec(module.partition(".")[0]) for module in plugin_modules()]
    folders = [Path(spec.origin).with_name(CONFIG_FOLDER) for spec in specs if spec is not None and spec.origin]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def plugin_errors() -> Iterator[tuple[str, Exception]]:
    """The plugins that verl could not load, and why: verl itself says so at DEBUG level only.

    Yields:
        The name of a module, and what importing it raises.
    """
    for module in plugin_modules():
        try:
            import_module(module)
        except Exception as error:
            yield module, error

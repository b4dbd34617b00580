"""Hydra finds our configuration groups in every verl entry point, without any ``hydra.searchpath``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

import drpo_verl
from drpo_verl.configuration import seeds as _registers_resolvers  # noqa: F401
from drpo_verl.configuration.plugins import CONFIG_FOLDER, plugin_config_dirs


def config_dir() -> Path:
    """The folder of our configuration groups: inside the package when installed from a wheel, beside it in a checkout.

    Raises:
        FileNotFoundError: when the installation has lost it.
    """
    package = Path(drpo_verl.__file__).parent
    for folder in (package / CONFIG_FOLDER, package.parent / CONFIG_FOLDER):
        if (folder / "method").is_dir():
            return folder
    raise FileNotFoundError(f"no {CONFIG_FOLDER} beside or inside {package}: reinstall drpo-verl")


def verl_config_dir() -> Path:
    """The folder of verl's own configuration, found without importing verl.

    Raises:
        ModuleNotFoundError: when verl is not installed.
    """
    spec = find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("verl is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "trainer" / "config"


def methods() -> list[str]:
    """The choices of ``+method=``, in alphabetical order, those of other packages included."""
    folders = [config_dir(), *plugin_config_dirs()]
    return sorted({path.stem for folder in folders for path in (folder / "method").glob("*.yaml")})


class DrpoVerlSearchPath(SearchPathPlugin):
    """Appends our groups, those of other plugins, and verl's to the search path of a program that uses verl."""

    is_registered: ClassVar[bool] = False
    """Whether this process has asked for the groups itself (see ``register``)."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra, which finds this class through ``hydra_plugins``, in every program that uses Hydra."""
        if not (self.is_registered or "verl" in sys.modules):
            return
        search_path.append("drpo-verl", config_dir().as_uri())
        for folder in plugin_config_dirs():
            search_path.append("verl.plugins", folder.as_uri())
        search_path.append("verl", verl_config_dir().as_uri())


def register() -> None:
    """Make Hydra use the search path from now on, in a program that has not imported verl too."""
    DrpoVerlSearchPath.is_registered = True
    plugins = Plugins.instance()
    if DrpoVerlSearchPath not in plugins.discover(SearchPathPlugin):
        plugins.register(DrpoVerlSearchPath)

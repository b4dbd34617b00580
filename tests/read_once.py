"""What all compositions of the tests have in common is read once: YAML files, and the texts of interpolations.

A composition takes most of its time for reading the same 40 files again, and each of the hundred interpolations in
them. Which files are composed, in which order, and to what, is still up to Hydra and OmegaConf, each time.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest


def _once(load_config: Callable[..., Any]) -> Callable[..., Any]:
    read: dict[tuple[str, str, str, int], bytes] = {}

    def loading(source: Any, config_path: str) -> Any:
        file = os.path.join(source.path, source._normalize_file_name(config_path))
        # 0: a file within a package, or none, which is said by what reads it.
        changed = os.stat(file).st_mtime_ns if os.path.exists(file) else 0
        key = source.scheme(), source.provider, file, changed
        if key not in read:
            read[key] = pickle.dumps(load_config(source, config_path))
        return pickle.loads(read[key])  # Hydra changes it; this takes a fifth of the time of a deep copy

    return loading


@contextlib.contextmanager
def each_file_is_read_once() -> Iterator[None]:
    """Within it, a file that has not changed is not read again, and no interpolation is parsed again."""
    import omegaconf._utils
    import omegaconf.base
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    Plugins.instance()  # which registers the sources
    with pytest.MonkeyPatch.context() as patch:
        for scheme in ("file", "pkg"):
            source = SourcesRegistry.instance().resolve(scheme)
            patch.setattr(source, "load_config", _once(source.load_config))
        parse = lru_cache(maxsize=None)(omegaconf.base.parse)
        for module in (omegaconf.base, omegaconf._utils):
            patch.setattr(module, "parse", parse)
        yield

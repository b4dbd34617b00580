"""Builds a folder once: keyed by its recipe, written atomically, whatever other processes build the same one."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

RECIPE_FILE = "recipe.json"
"""The file in every finished folder that says what it was built from; a folder without it is not finished."""


def default_dir() -> Path:
    """Return the folder where prepared models are kept: the default of `prepare.cache_dir`."""
    from omegaconf import OmegaConf

    from drpo_verl.configuration.search_path import config_dir

    return Path(OmegaConf.load(config_dir() / "train.yaml").prepare.cache_dir)


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """Hash a recipe to 12 hexadecimal digits, independent of key order and stable across processes.

    Raises:
        TypeError: a value has no JSON form. (Falling back to `repr` could hash a memory address.)
    """
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def ensure_folder(cache_dir: Path | str, name: str, recipe: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """Return the folder `<cache_dir>/<name>-<fingerprint>`, calling `build(empty_folder)` only if it is not there.

    `build` fills a scratch folder beside the final one, which a rename then publishes: a reader sees nothing or all of
    it, and an interrupted build counts for nothing. Processes that want the same folder wait for one to build it.

    Args:
        cache_dir: created if absent. The rename is atomic since scratch and final folder share this file system.
        name: human-readable prefix of the folder's name.
        recipe: everything the content depends on, as JSON values; a changed recipe means another folder.
        build: writes the content. What it raises propagates, and the scratch folder is removed.
    """
    cache_dir = Path(cache_dir).expanduser()
    key = f"{name}-{fingerprint(recipe)}"
    final = cache_dir / key
    if (final / RECIPE_FILE).is_file():
        return final
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir / f".{key}.lock"):
        if (final / RECIPE_FILE).is_file():  # another process built it while this one waited
            return final
        scratch = cache_dir / f".{key}.partial"
        for leftover in (scratch, final):  # what a killed build left, or a folder that somebody emptied by hand
            shutil.rmtree(leftover, ignore_errors=True)
        scratch.mkdir()
        try:
            build(scratch)
            (scratch / RECIPE_FILE).write_text(json.dumps(recipe, sort_keys=True, indent=2) + "\n")
            scratch.rename(final)
        except BaseException:  # also KeyboardInterrupt: a user who stops a warm-up should not leave 10 MB behind
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return final

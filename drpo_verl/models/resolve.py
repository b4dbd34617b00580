"""The model to be measured, and the arithmetic problems that it is asked when no prompts are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from drpo_verl.models.cache import default_dir
from drpo_verl.models.checkpoints import as_hugging_face, find_actor
from drpo_verl.probe.settings import ProbeError


def _tiny(cache_dir: Path) -> Path:
    from drpo_verl.models.tiny_policy import ensure_tiny_policy

    return ensure_tiny_policy(cache_dir)


def _smollm2(cache_dir: Path) -> Path:
    from drpo_verl.models.smollm2 import ensure_smollm2

    return ensure_smollm2(cache_dir)


PREPARED: Mapping[str, Callable[[Path], Path]] = {"tiny": _tiny, "smollm2": _smollm2}
"""The models of the CPU experiments, made when they are asked for."""


def resolve(name: str) -> str:
    """A folder, or a name that Hugging Face's libraries know what to do with.

    Args:
        name: one of these; a run or a checkpoint of verl, which is merged if need be; or a key of `PREPARED`.

    Raises:
        ProbeError: when it can be neither.
        UserError: when a checkpoint can not be merged.
    """
    if name in PREPARED:
        try:
            return str(PREPARED[name](default_dir()))
        except RuntimeError as error:
            raise ProbeError(f"MODEL={name!r} can not be prepared: {error}") from error
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists() and (actor := find_actor(folder)) is not None:
            return str(as_hugging_face(actor.absolute()))
        if not (folder / "config.json").exists():
            raise ProbeError(
                f"MODEL={name!r} has no config.json: give a folder in Hugging Face's format, "
                "or a checkpoint of verl (global_step_N)."
            )
        return str(folder.absolute())
    # <organisation>/<name> may be a name on the hub: its own errors say more than could be said here.
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ProbeError(
            f"MODEL={name!r} does not exist: give a Hugging Face folder, a name like Qwen/Qwen3-0.6B, "
            f"or one of {', '.join(PREPARED)}."
        )
    return name

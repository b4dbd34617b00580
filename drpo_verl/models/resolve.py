"""Finds the model that a name, a folder or a checkpoint stands for."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

from drpo_verl.errors import UserError
from drpo_verl.models.cache import default_dir
from drpo_verl.models.checkpoints import as_hugging_face, find_actor

PREPARED = {
    "tiny": "drpo_verl.models.tiny_policy:ensure_tiny_policy",
    "tiny_moe": "drpo_verl.models.tiny_policy:ensure_tiny_moe_policy",
    "tiny_long_tail": "drpo_verl.models.tiny_policy:ensure_tiny_long_tail_policy",
    "smollm2": "drpo_verl.models.smollm2:ensure_smollm2",
}
"""What builds the models of the CPU experiments, by their short names; imported when a model is asked for."""


def resolve(name: str) -> str:
    """Return a folder, or a name that Hugging Face's libraries look up.

    Args:
        name: a folder in Hugging Face's format or a name on the hub; a run or a checkpoint of verl, which is merged if
            need be; or a key of `PREPARED`.

    Raises:
        UserError: there is no such model, or it can not be built or merged.
    """
    if name in PREPARED:
        try:
            return str(resolve_name(PREPARED[name])(default_dir()))
        except RuntimeError as error:
            raise UserError(f"MODEL={name!r} can not be prepared: {error}") from error
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "config.json").exists():
            return str(folder.absolute())
        actor = find_actor(folder)
        if actor is not None:
            return str(as_hugging_face(actor.absolute()))
        raise UserError(
            f"MODEL={name!r} has no config.json: give a folder in Hugging Face's format, "
            "or a checkpoint of verl (global_step_N)."
        )
    # <organisation>/<name> may be a name on the hub: its own errors say more than could be said here.
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"MODEL={name!r} does not exist: give a Hugging Face folder, a name like Qwen/Qwen3-0.6B, "
            f"or one of {', '.join(PREPARED)}."
        )
    return name

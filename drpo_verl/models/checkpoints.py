"""Turns a checkpoint of verl's trainer into a Hugging Face folder.

verl's FSDP actor saves `global_step_N/actor/`: one shard of the weights per rank, and in `huggingface/` configuration
and tokenizer, with weights only if `actor.checkpoint.save_contents` has `hf_model`. Missing weights are merged by
verl's own `model_merger`, which rounds to bfloat16, once, into a folder beside the shards.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from drpo_verl.errors import UserError

_STEP = re.compile(r"global_step_(\d+)")
_NEWEST = "latest_checkpointed_iteration.txt"
_HUGGING_FACE = "huggingface"
_FSDP = "fsdp_config.json"


def find_actor(folder: Path) -> Path | None:
    """Find the folder of the actor in a checkpoint; None if there is none.

    Args:
        folder: of a run, its `checkpoints`, a `global_step_N`, or the actor itself. Of several steps, the newest that
            verl has finished is taken.
    """
    if (folder / _FSDP).is_file() or (folder / _HUGGING_FACE / "config.json").is_file():
        return folder
    if (folder / "actor").is_dir():
        return folder / "actor"
    for checkpoints in (folder, folder / "checkpoints"):
        steps = {int(match[1]): path for path in checkpoints.glob("global_step_*") if (match := _STEP.match(path.name))}
        if steps:
            # A step that is still being written is not in verl's own note yet.
            note = checkpoints / _NEWEST
            newest = int(note.read_text()) if note.is_file() else max(steps)
            return find_actor(steps.get(newest, steps[max(steps)]))
    return None


def as_hugging_face(actor: Path) -> Path:
    """Return a folder with the weights of an actor's checkpoint, which are merged once unless the shards change.

    Raises:
        UserError: the checkpoint can not be merged here, or the merge fails.
    """
    from drpo_verl.models.cache import ensure_folder

    ready = actor / _HUGGING_FACE
    if any(ready.glob("*.safetensors")) or any(ready.glob("*.bin")):
        return ready
    shards = sorted(actor.glob("model_world_size_*_rank_*.pt"))
    if not shards or not (actor / _FSDP).is_file():
        raise UserError(
            f"{actor} has neither weights in {_HUGGING_FACE}/ nor an FSDP checkpoint. A Megatron one is merged by "
            f"python -m verl.model_merger merge --backend megatron --local_dir {actor} --target_dir FOLDER."
        )
    recipe = {shard.name: [shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards}
    return ensure_folder(actor, "merged", recipe, lambda folder: _merge(actor, folder))


def _merge(actor: Path, folder: Path) -> None:
    # A process of its own: what the shards take is given back, and its loads of pickled tensors stay out of this one.
    run = subprocess.run(
        [
            sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp",
            "--local_dir", str(actor), "--target_dir", str(folder),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise UserError(f"verl.model_merger could not merge {actor}: {last}")

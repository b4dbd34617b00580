"""Turns a checkpoint of verl's trainer into a Hugging Face folder.

verl's FSDP actor saves `global_step_N/actor/`: one shard of the weights per rank, and in `huggingface/` configuration
and tokenizer, with weights only if `actor.checkpoint.save_contents` has `hf_model`. Missing weights are merged by
verl's own `model_merger`, which rounds to bfloat16, once, into a folder beside the shards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from drpo_verl.errors import UserError
from drpo_verl.models.saved_steps import (
    FSDP_CONFIG,
    HUGGING_FACE,
    NOTE,
    read_note,
    shards_problem,
    steps_in,
    world_size,
)
from drpo_verl.seams import warn

_WEIGHTS = ("model",)


def find_actor(folder: Path) -> Path | None:
    """Find the folder of the actor in a checkpoint; None if there is none.

    Args:
        folder: of a run, its `checkpoints`, a `global_step_N`, or the actor itself. Of several steps, the newest that
            verl has finished is taken; where it is not known or its weights are not whole, the newest whose are, with a
            warning.

    Raises:
        UserError: there are steps, and none has whole weights.
    """
    if (folder / FSDP_CONFIG).is_file() or (folder / HUGGING_FACE / "config.json").is_file():
        return folder
    if (folder / "actor").is_dir():
        return folder / "actor"
    for checkpoints in (folder, folder / "checkpoints"):
        if steps := steps_in(checkpoints):
            return _newest_actor(checkpoints, steps)
    return None


def _newest_actor(checkpoints: Path, steps: Mapping[int, Path]) -> Path:
    noted, why = read_note(checkpoints)
    if noted is not None and noted not in steps:
        why = f"{NOTE} names step {noted}, which is not there"
    elif noted is not None:
        why = _problem(steps[noted] / "actor")
        if not why:
            return steps[noted] / "actor"
        why = f"global_step_{noted} is not whole: {why}"
    for number in sorted(steps, reverse=True):
        if not _problem(actor := steps[number] / "actor"):
            warn(f"{checkpoints}: {why}. The weights are those of global_step_{number}.")
            return actor
    newest = noted if noted is not None and noted in steps else max(steps)
    raise UserError(
        f"{checkpoints} has no step with whole weights: of global_step_{newest}, {_problem(steps[newest] / 'actor')}."
    )


def _problem(actor: Path) -> str:
    """What keeps the weights of an actor's checkpoint from being loaded; empty when nothing does."""
    ready = actor / HUGGING_FACE
    weights = sorted(ready.glob("*.safetensors")) + sorted(ready.glob("*.bin"))
    if not weights:
        problem = shards_problem(actor, _WEIGHTS)
        unfinished = actor.is_dir() and world_size(actor) is not None and not (ready / "config.json").is_file()
        return problem or (f"{HUGGING_FACE}/config.json is missing" if unfinished else "")
    for index in ready.glob("*.index.json"):
        named = set(json.loads(index.read_bytes())["weight_map"].values())
        if missing := sorted(named - {file.name for file in weights}):
            return f"{HUGGING_FACE}/{missing[0]} is missing"
    short = next((file for file in weights if not _is_whole(file)), None)
    return f"{HUGGING_FACE}/{short.name} is cut short" if short else ""


def _is_whole(weights: Path) -> bool:
    if weights.suffix != ".safetensors":
        return zipfile.is_zipfile(weights)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy"):  # reads the header, and compares it with the file's size
            return True
    except (SafetensorError, OSError):
        return False


def as_hugging_face(actor: Path) -> Path:
    """Return a folder with the weights of an actor's checkpoint, which are merged once unless the shards change.

    Raises:
        UserError: the checkpoint can not be merged here, or the merge fails.
    """
    from drpo_verl.models.cache import ensure_folder

    ready = actor / HUGGING_FACE
    if problem := _problem(actor):
        raise UserError(f"{actor} is not whole, and can not be loaded: {problem}. Give another step.")
    if any(ready.glob("*.safetensors")) or any(ready.glob("*.bin")):
        return ready
    shards = sorted(actor.glob("model_world_size_*_rank_*.pt"))
    if not shards or not (actor / FSDP_CONFIG).is_file():
        raise UserError(
            f"{actor} has neither weights in {HUGGING_FACE}/ nor an FSDP checkpoint. A Megatron one is merged by "
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

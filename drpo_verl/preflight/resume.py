"""Rules about checkpoints: what is saved, where, and what a run goes on from. Nothing of a checkpoint is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR
from drpo_verl.preflight.rows import rows_of

_MODE, _SOURCE, _FOLDER = "trainer.resume_mode", "trainer.resume_from_path", "trainer.default_local_dir"
_RESUMED = ("model", "optimizer", "extra")
_STEP = re.compile(r"global_step_(\d+)")
_NOTE = "latest_checkpointed_iteration.txt"
"""verl's note of the newest checkpoint that it has finished, beside the checkpoints."""


@rule
def checkpoints(run: RunConfig) -> Findings:
    """Checkpoints hold what a run is resumed from, and are kept where every node finds them."""
    mode = run.get(_MODE, "auto")
    folder = run.get(_FOLDER)
    if folder is not None and run.nodes > 1 and not Path(str(folder)).is_absolute():
        message = f"is relative, and each of {run.nodes} nodes saves its shards under a folder of its own."
        advice = "Set it (or run.dir) to an absolute path on storage that all nodes share."
        yield run.warning(_FOLDER, message, advice=advice)
    name = f"{ACTOR}.checkpoint.save_contents"
    contents, frequency = run.get(name), run.get("trainer.save_freq")
    missing = [part for part in _RESUMED if isinstance(contents, list) and part not in contents]
    if is_whole(frequency, 1) and missing and mode != "disable":
        everything = ",".join(dict.fromkeys([*contents, *_RESUMED]))
        message = f"leaves out {', '.join(missing)}, which a run is resumed from."
        yield run.warning(name, message, f"{name}=[{everything}]", f"{_MODE}=disable")
    name, loaded = f"{ACTOR}.checkpoint.load_contents", run.get(f"{ACTOR}.checkpoint.load_contents")
    left = [part for part in contents or () if isinstance(loaded, list) and part in _RESUMED and part not in loaded]
    if left and not missing and mode != "disable":
        message = f"leaves out {', '.join(left)}, which is saved: a resumed run begins with it anew."
        yield run.warning(name, message, f"{name}=[{','.join(dict.fromkeys([*loaded, *left]))}]", f"{_MODE}=disable")
    name = f"{ACTOR}.checkpoint.async_save"
    if run.get(name, False) and not run.is_megatron:
        message = f"is Megatron's: verl would note no checkpoint of {run.strategy} as the newest, and resume_mode=auto "
        yield run.error(name, f"{message}would find none.", f"{name}=False")


@rule
def resume(run: RunConfig) -> Findings:
    """A run that is to go on from a checkpoint names one that is there and whole, of its ranks, and has steps left."""
    mode, source = run.get(_MODE, "auto"), run.get(_SOURCE)
    if mode == "resume_path":
        yield from _named_checkpoint(run, source)
    elif mode not in ("auto", "disable"):
        yield run.error(_MODE, "is none of auto, disable and resume_path.", f"{_MODE}=auto", f"{_MODE}=disable")
    elif source is not None:
        message = f"is not read with resume_mode={mode}: the run would "
        message += (
            "begin anew." if mode == "disable" else "go on from the newest of its own checkpoints, or begin anew."
        )
        yield run.error(_SOURCE, message, f"{_MODE}=resume_path", f"{_SOURCE}=null")
    elif mode == "auto":
        yield from _newest_checkpoint(run)


def _named_checkpoint(run: RunConfig, source: object) -> Findings:
    if source is None:
        message = "is not set, and resume_mode=resume_path reads it."
        yield run.error(_SOURCE, message, f"{_MODE}=auto", advice="Or set it to a checkpoint's folder.")
        return
    path = Path(str(source)).expanduser()
    if not isinstance(source, str) or not _STEP.fullmatch(source.rpartition("/")[2]):
        message = "has to end with global_step_N, of which verl takes the step's number."
        steps = [found for found in path.glob("global_step_*") if _STEP.fullmatch(found.name)]
        parent = next((each for each in path.parents if _STEP.fullmatch(each.name)), None)
        if _STEP.fullmatch(path.name):
            parent = path  # with a slash behind it
        newest = max(steps, key=lambda found: int(found.name.rpartition("_")[2])) if steps else parent
        overrides = [f"{_SOURCE}={newest}"] if newest is not None else []
        yield run.error(_SOURCE, message, *overrides, advice="Name the folder of one step.")
    elif path.is_dir():
        yield from _loadable(run, path, _SOURCE)
        yield from _steps_left(run, path, _SOURCE)
    elif not source.startswith("hdfs:"):
        yield run.warning(_SOURCE, "is no folder on this machine.", advice="Is it on the nodes?")


def _newest_checkpoint(run: RunConfig) -> Findings:
    """What verl finds in the run's own folder: it begins anew, without a word, where its note does not fit."""
    if run.get(_FOLDER) is None:
        return
    folder = Path(str(run.get(_FOLDER))).expanduser()
    found = {int(match[1]): path for path in folder.glob("global_step_*") if (match := _STEP.fullmatch(path.name))}
    note = folder / _NOTE
    if not note.is_file():
        if found:
            yield _begins_anew(run, f"has checkpoints and no {_NOTE}", found)
        return
    text = note.read_text(errors="replace").strip()
    if not re.fullmatch(r"\d+", text):
        yield _begins_anew(run, f"has {text!r} in its {_NOTE}, which is no step", found)
    elif int(text) not in found:
        yield _begins_anew(run, f"has no global_step_{text}, which its {_NOTE} names", found)
    else:
        yield from _loadable(run, found[int(text)], _MODE)
        yield from _steps_left(run, found[int(text)], _MODE)


def _begins_anew(run: RunConfig, message: str, found: dict[int, Path]) -> Finding:
    message += f": with {_MODE}=auto verl would fail, or begin anew and overwrite what is there."
    whole = [step for step, path in found.items() if (path / "actor").is_dir() and (path / "data.pt").is_file()]
    goes_on = [f"{_MODE}=resume_path {_SOURCE}={found[max(whole)]}"] if whole else []
    return run.error(_FOLDER, message, *goes_on, f"{_MODE}=disable")


def _loadable(run: RunConfig, checkpoint: Path, name: str) -> Findings:
    """What keeps verl from loading an FSDP checkpoint: shards of another number of ranks, missing or empty ones."""
    shards = list((checkpoint / "actor").glob("*_world_size_*_rank_*.pt"))
    sizes = {path.name: path.stat().st_size for path in shards}
    worlds = {int(match[1]) for each in sizes if (match := re.search(r"world_size_(\d+)_", each))}
    if run.is_fsdp and worlds and run.world not in worlds:
        setting = "trainer.n_gpus_per_node"
        message = f"x {run.nodes} node{'s' if run.nodes > 1 else ''} are {run.world} ranks, and {checkpoint} has the "
        message += f"shards of {max(worlds)}."
        fitting = [f"{setting}={max(worlds) // run.nodes}"] if max(worlds) % run.nodes == 0 else []
        yield run.error(setting, message, *fitting, f"{_MODE}=disable {_SOURCE}=null", advice="The last begins anew.")
    elif run.is_fsdp and worlds and run.nodes == 1:  # of several nodes, each may have its own
        parts = {each.partition("_world_size_")[0] for each in sizes}
        wanted = [
            f"{part}_world_size_{run.world}_rank_{rank}.pt" for part in sorted(parts) for rank in range(run.world)
        ]
        broken = [each for each in wanted if not sizes.get(each)]
        if broken:
            message = f"goes on from {checkpoint}, in which {broken[0]} is missing or empty"
            message += f" (one of {len(broken)})." if len(broken) > 1 else "."
            advice = "Name an earlier checkpoint in trainer.resume_from_path."
            yield run.error(name, message, f"{_MODE}=disable {_SOURCE}=null", advice=advice)
    if not (checkpoint / "data.pt").is_file():
        message = f"goes on from {checkpoint}, which has no data.pt: the order of the data begins anew."
        yield run.warning(name, message, advice="What it has been trained on may come again.")


def _steps_left(run: RunConfig, checkpoint: Path, name: str) -> Findings:
    done, total = int(checkpoint.name.rpartition("_")[2]), run.get("trainer.total_training_steps")
    setting, more = "trainer.total_training_steps", 2 * done
    rows = rows_of(run, "train") if total is None else None
    if rows is not None:
        setting, of_an_epoch = "trainer.total_epochs", rows.most // run.prompts
        total, more = of_an_epoch * run.whole(setting), 2 * done // of_an_epoch if of_an_epoch else 0
    if is_whole(total, 1) and done >= total:
        message = f"goes on from {checkpoint}, and {setting} ends at step {total}: nothing is left to train."
        yield run.error(
            name, message, f"{setting}={more}", f"{_MODE}=disable {_SOURCE}=null", advice="The last begins anew."
        )

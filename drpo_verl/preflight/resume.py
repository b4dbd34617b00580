"""Rules about checkpoints: what is saved, where, and what a run goes on from. Nothing of a checkpoint is loaded.

Where verl would not find the newest whole step by itself, ``go_on_from_a_whole_step`` names it to verl.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, open_dict

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR
from drpo_verl.models.saved_steps import ResumePoint, SavedStep, inspect_step, resume_point, world_size
from drpo_verl.preflight.rows import rows_of

_MODE, _SOURCE, _FOLDER = "trainer.resume_mode", "trainer.resume_from_path", "trainer.default_local_dir"
_RESUMED = ("model", "optimizer", "extra")
_STEP = re.compile(r"global_step_(\d+)")
_MOST_NAMED = 3
_ANEW = "The last begins anew."


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
    """A run that is to go on from a checkpoint has one that is there and whole, of its own ranks, with steps left."""
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
    elif mode == "auto" and (point := _resume_point(run)) is not None:
        yield from _own_checkpoint(run, point)


def go_on_from_a_whole_step(config: DictConfig) -> None:
    """Have verl resume the newest whole step where it would not find it itself; the rule ``resume`` has said so.

    Args:
        config: of a run with ``trainer.resume_mode=auto``, which is changed to ``resume_path``; otherwise untouched.
    """
    run = RunConfig(config)
    point = _resume_point(run) if run.get(_MODE, "auto") == "auto" else None
    if point is not None and point.step is not None and not point.trusted:
        with open_dict(config):
            config.trainer.resume_mode = "resume_path"
            config.trainer.resume_from_path = str(point.step.folder.absolute())


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
        number = int(path.name.rpartition("_")[2])
        step = inspect_step(number, path, _contents(run), all_ranks=_all_ranks(run), finished=True)
        if step.problem:
            newest_whole = resume_point(path.parent, _contents(run), all_ranks=_all_ranks(run)).step
            overrides = [f"{_SOURCE}={newest_whole.folder}"] if newest_whole else []
            beginning = f"{_MODE}=disable {_SOURCE}=null"
            yield run.error(_SOURCE, f"is not whole: {step.problem}.", *overrides, beginning, advice=_ANEW)
            return
        yield from _goes_on(run, step, _SOURCE)
    elif not source.startswith("hdfs:"):
        yield run.warning(_SOURCE, "is no folder on this machine.", advice="Is it on the nodes?")


def _own_checkpoint(run: RunConfig, point: ResumePoint) -> Findings:
    """What is to be known of the steps in the run's own folder, of which verl alone may take a wrong one, or none."""
    named = [f"{step.folder.name} is not whole ({step.problem})" for step in point.broken[:_MOST_NAMED]]
    why = "; ".join([*([point.note_problem] if point.note_problem else []), *named])
    if point.step is None and not point.trusted:
        message = f"has no step to go on from: {why}. verl would fail, or begin anew without a word."
        yield run.error(_FOLDER, message, f"{_MODE}=disable", advice=_ANEW)
    elif point.step is None and why:
        yield run.warning(_FOLDER, f"has no step that was finished: {why}. The run starts from the beginning.")
    elif point.step is not None and not point.trusted:
        override = f"{_MODE}=resume_path {_SOURCE}={point.step.folder.absolute()}"
        message = f"is not as verl needs it to go on: {why}."
        advice = f"`python -m drpo_verl.train` does, and goes on from {point.step.folder.name}."
        yield run.warning(_FOLDER, message, override, advice=advice)
    elif point.step is not None and why:
        advice = f"The run goes on from {point.step.folder.name}."
        yield run.warning(_FOLDER, f"has a step that was never finished: {why}.", advice=advice)
    if point.step is not None:
        yield from _goes_on(run, point.step, _MODE)


def _resume_point(run: RunConfig) -> ResumePoint | None:
    folder = Path(str(run.get(_FOLDER, ""))).expanduser()
    there = run.get(_FOLDER) is not None and folder.is_dir()
    return resume_point(folder, _contents(run), all_ranks=_all_ranks(run)) if there else None


def _contents(run: RunConfig) -> Sequence[str]:
    contents = run.get(f"{ACTOR}.checkpoint.load_contents")
    return contents if isinstance(contents, list) else _RESUMED


def _all_ranks(run: RunConfig) -> bool:
    # Of several machines, each may have the shards of its own ranks on a disk of its own.
    return run.nodes == 1


def _goes_on(run: RunConfig, step: SavedStep, name: str) -> Findings:
    """What is to be known of going on from a whole step, which the setting of that name has chosen."""
    yield from _of_these_ranks(run, step.folder)
    yield from _steps_left(run, step.folder, name)
    if not step.has_place_in_data:
        message = f"goes on from {step.folder}, which has no data.pt: the order of the data begins anew."
        yield run.warning(name, message, advice="What it has been trained on may come again.")


def _of_these_ranks(run: RunConfig, checkpoint: Path) -> Findings:
    """An error where an FSDP checkpoint has the shards of another number of ranks, which verl can not load."""
    actor = checkpoint / "actor"
    ranks = world_size(actor) if run.is_fsdp and actor.is_dir() else None
    if ranks is not None and run.world != ranks:
        name = "trainer.n_gpus_per_node"
        message = f"x {run.nodes} node{'s' if run.nodes > 1 else ''} are {run.world} ranks, and {checkpoint} has the "
        message += f"shards of {ranks}."
        fitting = [f"{name}={ranks // run.nodes}"] if ranks % run.nodes == 0 else []
        yield run.error(name, message, *fitting, f"{_MODE}=disable {_SOURCE}=null", advice=_ANEW)


def _steps_left(run: RunConfig, checkpoint: Path, name: str) -> Findings:
    done, total = int(checkpoint.name.rpartition("_")[2]), run.get("trainer.total_training_steps")
    setting, more = "trainer.total_training_steps", 2 * done
    rows = rows_of(run, "train") if total is None else None
    if rows is not None:
        setting, of_an_epoch = "trainer.total_epochs", rows.most // run.prompts
        total, more = of_an_epoch * run.whole(setting), 2 * done // of_an_epoch if of_an_epoch else 0
    if is_whole(total, 1) and done >= total:
        message = f"goes on from {checkpoint}, and {setting} ends at step {total}: nothing is left to train."
        yield run.error(name, message, f"{setting}={more}", f"{_MODE}=disable {_SOURCE}=null", advice=_ANEW)

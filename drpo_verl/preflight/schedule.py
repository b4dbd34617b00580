"""Rules about the course of a run: staleness, steps, validation, checkpoints, loggers, alerts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from drpo_verl.check.registry import rule, rule_for_any_loss
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import ACTOR, CORRECTION, Run, is_number, is_whole

_MODES = ("sync", "colocate_async", "separate_async")
_SAMPLER = "trainer.v1.sampler"
_PACKAGES = {
    "wandb": "wandb", "mlflow": "mlflow", "swanlab": "swanlab", "tensorboard": "tensorboard", "clearml": "clearml",
    "trackio": "trackio", "vemlp_wandb": "volcengine_ml_platform", "rl_insight": "rl_insight",
    "console": None, "file": None,
}  # fmt: skip
"""Loggers of verl's ``Tracking``, and the package that each imports."""


@rule
def staleness(run: Run) -> Iterable[Finding]:
    """The trainer mode is one of verl's, its prefetching is bounded, and it drops less than it makes."""
    mode = run.trainer_mode
    if mode not in _MODES:
        yield run.error("trainer.v1.trainer_mode", f"is none of {', '.join(_MODES)}.", "Choose one.")
        return
    limit = run.get(f"{_SAMPLER}.max_off_policy_threshold")
    if limit is not None and not (is_whole(limit) and limit >= 1):
        yield run.error(
            f"{_SAMPLER}.max_off_policy_threshold", "is not a whole number of at least 1.", "Set it to one, or to null."
        )
    strategy = f"{_SAMPLER}.max_off_policy_strategy"
    if run.get(strategy, "drop") not in ("drop", "wait"):
        yield run.error(strategy, "is neither drop nor wait.", "Choose one.")
    if mode == "sync":
        return
    name = f"trainer.v1.{mode}.num_warmup_batches"
    batches = run.get(name, 1)
    if not is_number(batches) or batches < 0:
        yield run.error(name, "is no number of batches.", "Set it to 1.")
    elif batches == 0:
        yield run.warning(
            name, "prefetches nothing: the trainer waits for each rollout, as the synchronous one does.", "Set it to 1."
        )
    elif is_whole(limit) and batches >= limit:
        yield run.warning(
            name, f"batches ahead are as stale as max_off_policy_threshold={limit} allows: what was sampled is "
            f"{'dropped' if run.get(strategy, 'drop') == 'drop' else 'waited for'}.", f"Set it below {limit}.",
        )  # fmt: skip
    sync = f"trainer.v1.{mode}.parameter_sync_step"
    value = run.get(sync)
    if value is not None and not (is_whole(value) and value >= 1):
        yield run.error(sync, "is not a whole number of at least 1.", "Set it to one.")
    if mode == "separate_async" and not run.bypass and run.sync_step > 1:
        yield run.note(
            f"{CORRECTION}.bypass_mode", f"recomputes pi_old from weights that are kept in host memory, and swapped in "
            f"for {run.sync_step - 1} of {run.sync_step} updates.",
        )  # fmt: skip


@rule
def steps(run: Run) -> Iterable[Finding]:
    """The run has steps, and validates and saves in their course."""
    name = "trainer.total_training_steps"
    total = run.get(name)
    if total is not None and not (is_whole(total) and total >= 1):
        yield run.error(name, "is not a whole number of at least 1.", "Set such a number, or null for whole epochs.")
        return
    if run.number("run.stall_seconds", 1) <= 0:
        yield run.error("run.stall_seconds", "ends every run at once.", "Set it to more than a step takes, in seconds.")
    for key, what in (("test_freq", "validates"), ("save_freq", "saves")):
        name = f"trainer.{key}"
        every = run.get(name, -1)
        if not is_whole(every) or every == 0:
            yield run.error(name, "is not a number of steps.", f"Set a number, or -1 for a run that never {what}.")
        elif total is not None and every > total:
            # verl does both after the last step too, if it does it at all.
            yield run.note(name, f"is more than the {total} steps: the run {what} after the last one only.")
    if run.get("trainer.save_freq", -1) == -1 and (total is None or total > 50):
        yield run.warning(
            "trainer.save_freq", "saves nothing: a run that is interrupted starts from the beginning.", "Set it to 20."
        )
    if (
        run.get("trainer.test_freq", -1) == -1
        and not run.get("trainer.val_before_train", True)
        and (total is None or total > 50)
    ):
        yield run.warning("trainer.test_freq", "validates nothing.", "Set it to 10.")


@rule
def checkpoints(run: Run) -> Iterable[Finding]:
    """Checkpoints hold what a run is resumed from, are kept where every node finds them, and are found."""
    mode, source = run.get("trainer.resume_mode", "auto"), run.get("trainer.resume_from_path")
    if mode not in ("auto", "disable", "resume_path"):
        yield run.error("trainer.resume_mode", "is none of auto, disable and resume_path.", "Choose one.")
    if mode == "resume_path":
        if source is None:
            yield run.error("trainer.resume_from_path", "is not set, and resume_mode=resume_path reads it.", "Set it.")
        elif not str(source).startswith("hdfs:") and not Path(source).expanduser().is_dir():
            yield run.warning("trainer.resume_from_path", "is no folder on this machine.", "Is it on the nodes?")
    folder = run.get("trainer.default_local_dir")
    if folder is not None and run.nodes > 1 and not Path(str(folder)).is_absolute():
        yield run.warning(
            "trainer.default_local_dir", f"is relative, and each of {run.nodes} nodes saves its shards under a folder "
            "of its own.", "Set it (or run.dir) to an absolute path on storage that all nodes share.",
        )  # fmt: skip
    contents = run.get(f"{ACTOR}.checkpoint.save_contents")
    saves = is_whole(run.get("trainer.save_freq")) and run.get("trainer.save_freq") > 0
    missing = [each for each in ("model", "optimizer", "extra") if isinstance(contents, list) and each not in contents]
    if saves and missing and mode != "disable":
        yield run.warning(
            f"{ACTOR}.checkpoint.save_contents", f"leaves out {', '.join(missing)}, which a run is resumed from.",
            "Add them, or set trainer.resume_mode=disable.",
        )  # fmt: skip


@rule
def loggers(run: Run) -> Iterable[Finding]:
    """The loggers are verl's, and their packages are installed."""
    name = "trainer.logger"
    value = run.get(name, ["console"])
    for each in [value] if isinstance(value, str) else value:
        if each not in _PACKAGES:
            yield run.error(name, f"has {each!r}, which verl does not know.", f"Choose from {', '.join(_PACKAGES)}.")
        elif (package := _PACKAGES[each]) and importlib.util.find_spec(package) is None:
            yield run.warning(
                name, f"has {each!r}, and {package} is not installed on this machine.", "Install it, or leave it out."
            )


@rule_for_any_loss
def alerts(run: Run) -> Iterable[Finding]:
    """The alerts on metrics are complete."""
    from drpo_verl.metrics.alerts import SECTION, parse_alerts

    try:
        parse_alerts(run.get(SECTION))
    except ValueError as error:
        remedy = f"Set it so, or leave the alert out: ~{SECTION}.<name>."
        yield Finding("error", SECTION, None, f"is refused: {error}", remedy)

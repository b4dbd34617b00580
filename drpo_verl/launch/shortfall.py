"""Says when verl has ended a run before the steps that it was asked for, which verl itself does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drpo_verl.launch.ending import RunFacts, changed_command, resume_command
from drpo_verl.run_folder.steps import METRICS_FILE, read_steps

if TYPE_CHECKING:
    from omegaconf import DictConfig

_TRAINED = "training/global_step"
"""A metric that verl logs with each training step, and not with a validation alone."""


class ShortfallError(RuntimeError):
    """A run has ended without an error, and without the steps that it was asked for."""


def require_all_steps(config: DictConfig, facts: RunFacts, overrides: Sequence[str]) -> None:
    """Refuse the end of a run from which verl's trainer has returned as if all were done.

    It returns when the epochs are over, whatever steps were asked for, and has neither saved nor validated then; and
    when it goes on from a checkpoint behind which no step is left.

    Args:
        config: the run's configuration.
        facts: what is known of the run: its folder, with its metrics, and its checkpoints.
        overrides: the arguments with which the run was started, for the command that goes on.

    Raises:
        ShortfallError: with the number of steps that were done, the reason and the command that goes on.
    """
    total, epochs = config.trainer.total_training_steps, config.trainer.total_epochs
    steps = read_steps(Path(facts.folder) / METRICS_FILE, lambda unreadable: None)  # the summary has said it
    trained = [step.step for step in steps if _TRAINED in step.metrics]
    saved = facts.checkpoint or 0
    last = max((step.step for step in steps), default=saved)
    # verl reads val_only after the validation before training, and nowhere else.
    only_validates = config.trainer.get("val_only", False) and config.trainer.get("val_before_train", True)
    if only_validates or (trained and (total is None or last >= total)):
        return
    if total is None or last >= total:
        more = f"trainer.total_epochs={2 * epochs}" if total is None else f"trainer.total_training_steps={2 * last}"
        raise ShortfallError(
            f"the run trained nothing: it went on from the checkpoint of step {last}, behind which no step is left. "
            f"To train longer: {changed_command(overrides, more)}"
        )
    epochs_needed = f"trainer.total_epochs={math.ceil(total * epochs / last) if trained else total}"
    command = (resume_command if saved else changed_command)(overrides, epochs_needed)
    kept = f"There is a checkpoint of step {saved}" if saved else "No checkpoint was saved, so that it begins again"
    raise ShortfallError(
        f"the run ended after {last} of {total} steps: trainer.total_epochs={epochs} "
        f"{'passes over its data are' if epochs > 1 else 'pass over its data is'} no more. {kept}. "
        f"To go on: {command}"
    )

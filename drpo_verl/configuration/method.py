"""What a run's method is called: the one name that its folder, picture, summary, report and dashboard go by."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

METHOD = "run.method"
"""The setting that ``+method=`` sets to its choice. It is the loss mode, except where two methods share one."""
LOSS_MODE = "actor_rollout_ref.actor.policy_loss.loss_mode"
"""verl's setting, by which runs of its own losses go."""


def method_of(config: DictConfig) -> str | None:
    """The method of a run.

    Args:
        config: the run's; sections may be missing.

    Returns:
        As chosen with ``+method=``, else the loss mode; None when nothing tells.
    """
    found = (OmegaConf.select(config, name, throw_on_resolution_failure=False) for name in (METHOD, LOSS_MODE))
    return next((str(name) for name in found if name is not None), None)

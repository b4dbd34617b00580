"""The name of a run's method, by which its folder, picture, summary, report and dashboard go."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

METHOD = "run.method"
"""The setting that ``+method=`` sets to its choice. It is the loss mode, except where two methods share one."""
LOSS_MODE = "actor_rollout_ref.actor.policy_loss.loss_mode"
"""verl's setting, by which runs of its own losses go."""


def method_of(config: DictConfig) -> str | None:
    """The name of a run's method.

    Args:
        config: the run's configuration; sections may be missing.

    Returns:
        As chosen with ``+method=``, else the loss mode; None when nothing tells.
    """
    names = (OmegaConf.select(config, setting, throw_on_resolution_failure=False) for setting in (METHOD, LOSS_MODE))
    return next((str(name) for name in names if name is not None), None)

"""The seed of a run in its configuration: what is derived from ``run.seed`` there, and where the workers find it.

The resolvers are registered when this module is imported.
"""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

SETTING = "run.seed"
LARGEST = 2**31 - 1
"""The largest seed: numpy takes 32 bits, and verl adds a replica's number to the seed of the rollout engine."""


def first(*values: Any) -> Any:
    """The first of some values that is not null: ``${drpo_verl.first:${run.seed},42}`` in a configuration."""
    return next((value for value in values if value is not None), None)


def flag(value: Any) -> str:
    """Whether a value is not null, as an environment variable says it: ``${drpo_verl.flag:${run.seed}}``."""
    return "0" if value is None else "1"


OmegaConf.register_new_resolver("drpo_verl.first", first, replace=True)
OmegaConf.register_new_resolver("drpo_verl.flag", flag, replace=True)


def seed_of(rollout: Any) -> int | None:
    """The seed of a run as ``hydra_configs/train.yaml`` puts it into the rollout's configuration.

    Args:
        rollout: the section ``actor_rollout_ref.rollout``, which verl hands to every worker that needs the seed.

    Returns:
        The seed, or None for a run without one.
    """
    custom = rollout.get("custom") or {}
    seed = (custom.get("drpo_verl") or {}).get("seed")
    return None if seed is None else int(seed)

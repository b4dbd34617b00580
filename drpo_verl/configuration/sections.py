"""The sections of verl's configuration that the rules are about."""

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
MODEL = "actor_rollout_ref.model"
REFERENCE = "actor_rollout_ref.ref"
POLICY_LOSS = f"{ACTOR}.policy_loss"
CORRECTION = "algorithm.rollout_correction"
ENVIRONMENT = "ray_kwargs.ray_init.runtime_env.env_vars"

RUN_VARIABLE = "DRPO_VERL_RUN"
"""Environment variable of every process of a run of ``drpo_verl.train``; its value is different in each run."""

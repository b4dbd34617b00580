"""Which seeds of a configuration follow ``run.seed``."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from drpo_verl.configuration.compose import compose_run
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.seeds import seed_of
from drpo_verl.preflight.facts import facts

FOLLOWING = {
    "data.seed": 42,
    "actor_rollout_ref.actor.data_loader_seed": 42,
    "actor_rollout_ref.actor.fsdp_config.seed": 42,
    "actor_rollout_ref.rollout.seed": 42,
    "prepare.policy.seed": 0,
    "prepare.data.seed": 1,
}
"""Settings of the demo, and what they are in a run without a seed."""
INVARIANT = "ray_kwargs.ray_init.runtime_env.env_vars.DRPO_VERL_BATCH_INVARIANT"


def _seeds(config: DictConfig) -> dict[str, int]:
    return {name: OmegaConf.select(config, name) for name in FOLLOWING}


def test_without_a_seed_they_are_what_they_were() -> None:
    config = compose_run(["experiment=cpu_tiny"])
    assert _seeds(config) == FOLLOWING
    assert seed_of(config.actor_rollout_ref.rollout) is None and OmegaConf.select(config, INVARIANT) == "0"


@pytest.mark.parametrize("method", ["drpo", "dppo_topk_tv"])  # Top-K has a setting of its own in the same place
def test_all_follow_a_seed_but_for_what_is_set_itself(method: str) -> None:
    config = compose_run(["experiment=cpu_tiny", f"method={method}", "run.seed=0", "prepare.policy.seed=5"])
    assert _seeds(config) == {**dict.fromkeys(FOLLOWING, 0), "prepare.policy.seed": 5}
    assert seed_of(config.actor_rollout_ref.rollout) == 0 and OmegaConf.select(config, INVARIANT) == "1"


@pytest.mark.parametrize(
    ("experiment", "engine"), [("drpo/qwen3_4b", "fsdp_config"), ("drpo/qwen3_30b_a3b_fp8_e2e", "megatron")]
)
def test_so_do_those_of_the_experiments_of_both_papers(experiment: str, engine: str) -> None:
    names = ["data.seed", "actor_rollout_ref.rollout.seed", f"actor_rollout_ref.actor.{engine}.seed"]
    for overrides, expected in (([], 42), (["run.seed=3"], 3)):
        config = compose_run([f"experiment={experiment}", *overrides])
        assert [OmegaConf.select(config, name) for name in names] == [expected] * 3


def test_a_seed_where_there_is_none() -> None:
    assert seed_of(OmegaConf.create({})) is None
    assert seed_of({"custom": None}) is None and seed_of({"custom": {"drpo_verl": {"top_k": 20}}}) is None


def test_the_check_tells_the_seed_and_those_that_do_not_follow_it() -> None:
    def told(*overrides: str) -> str | None:
        return facts(RunConfig(compose_run(["experiment=cpu_tiny", *overrides])), None).get("seed")

    assert told() is None and told("run.seed=3") == "3"
    assert told("run.seed=3", "data.seed=4", "prepare.policy.seed=0") == "3, but data.seed=4, prepare.policy.seed=0"

"""Real runs of the whole stack (verl + Ray + vLLM + FSDP2), each made once and looked at by many tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from stack import ONE_UPDATE, SHORT, Run, start

SHARED_RUNS = "shared runs"
LONGEST = ("test_jobs", "test_repeatable", "test_study", SHARED_RUNS)
"""Groups of tests that take minutes: they come first, so that no process is left with one of them at the end."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests have runs in common, for ``--dist loadgroup``: those of a file, and those of the runs below."""
    groups: dict[pytest.Item, str] = {}
    for item in items:
        fixtures: Sequence[str] = getattr(item, "fixturenames", ())
        groups[item] = SHARED_RUNS if {"exact_run", "two_rank_bf16_run"} & {*fixtures} else item.path.stem
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    items.sort(key=lambda item: LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def exact_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """fp32 on both sides and one optimiser step a rollout: pi and mu have the same weights."""
    return start(
        tmp_path_factory.mktemp("exact"), *SHORT, ONE_UPDATE, "precision=cpu_fp32",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16", "trainer.save_freq=3", "trainer.test_freq=3",
        "trainer.logger=[console,file,wandb]",
        "+ray_kwargs.ray_init.runtime_env.env_vars.WANDB_MODE=offline",
        "+alerts.e2e={metric: critic/score/mean, above: 0, steps: 1}",
    )  # fmt: skip


@pytest.fixture(scope="session")
def two_rank_bf16_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """bf16 in two vLLM replicas, fp32 in two FSDP2 ranks, DPPO over Top-K and two updates a rollout."""
    return start(
        tmp_path_factory.mktemp("ranks"), *SHORT, "method=dppo_topk_tv", "precision=cpu_bf16_rollout",
        "actor_rollout_ref.actor.policy_loss.top_k=5",
        "actor_rollout_ref.actor.policy_loss.delta=0.05", "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8", "trainer.test_freq=-1", "trainer.save_freq=-1",
        "+alerts.engines={metric: inference_mismatch/abs_prob_diff_mean, above: 1e-4, steps: 2}",
        "+alerts.certainty={metric: mismatch/behaviour_log_prob_mean, above: -3, steps: 1}",
    )  # fmt: skip

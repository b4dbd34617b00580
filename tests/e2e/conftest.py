"""Real runs of the whole stack (verl + Ray + vLLM + FSDP2), each made once and looked at by many tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stack import ONE_UPDATE, SHORT, Run, start
from xdist.scheduler import LoadScopeScheduling

SHARED_RUNS = "shared runs"
LOOK_AT_SHARED_RUNS = ("test_runs", "test_wandb", "test_report")
LONGEST = ("test_jobs", "test_repeatable", "test_study", SHARED_RUNS)
"""Groups of tests that take minutes: they come first, so that no process is left with one of them at the end."""


def group_of(file: Path) -> str:
    """Which tests have runs in common and so belong into one process: those of a file, and those of the runs below."""
    return SHARED_RUNS if file.stem in LOOK_AT_SHARED_RUNS else file.stem


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest groups first; a test of the shared runs has to be in one of their files."""
    for item in items:
        shared = {"exact_run", "two_rank_bf16_run"} & {*getattr(item, "fixturenames", ())}
        assert not shared or item.path.stem in LOOK_AT_SHARED_RUNS, f"{item.path.name} is missing above"
    groups = [group_of(item.path) for item in items]
    order = [LONGEST.index(group) if group in LONGEST else len(LONGEST) for group in groups]
    items[:] = [item for _, item in sorted(zip(order, items, strict=True), key=lambda pair: pair[0])]


class ByRuns(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist
    """Gives each process whole groups. pytest-xdist's own ``loadgroup`` does nothing with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(Path(nodeid.partition("::")[0]))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByRuns | None:
    """Schedule by the groups, where ``--dist loadscope`` is asked for."""
    return ByRuns(config, log) if config.getvalue("dist") == "loadscope" else None


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

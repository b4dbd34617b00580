"""A run with ``run.seed``, run again, resumed, and with another method."""

from __future__ import annotations

import shutil

import pytest
from stack import SHORT, Run, start

SEED = "run.seed=0"
SETTINGS = (
    *SHORT, SEED, "precision=cpu_fp32", "trainer.total_training_steps=4", "trainer.save_freq=2", "trainer.test_freq=2",
    # What a checkpoint has to hold: an epoch of three steps, a schedule, dropout, a threshold that moves, two updates.
    "prepare.data.n_train=24", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine", "actor_rollout_ref.actor.optim.lr_warmup_steps=3",
    "+actor_rollout_ref.model.override_config.attention_dropout=0.1",
    # Fewer tokens than the prompts of a step have: vLLM cuts one into parts, and prompts wait for others.
    "actor_rollout_ref.rollout.max_num_batched_tokens=100",
    "actor_rollout_ref.rollout.max_num_seqs=32",
)  # fmt: skip
ADAPTIVE = "method=drpo_adaptive"
OF_THE_MACHINE = ("timing", "perf/", "actor/perf/", "training/num_preempted")
"""Metrics that say how long something took, and what it took it on."""


def _differences(run: Run, other: Run, steps: list[int]) -> dict[str, float]:
    """The largest difference of each metric between two runs, where it is more than 1e-6 of the metric."""
    found: dict[str, float] = {}
    of_run, of_other = ({step.step: step for step in each.steps} for each in (run, other))
    for number in steps:
        first, second = (
            {name: value for name, value in each[number].metrics.items() if not name.startswith(OF_THE_MACHINE)}
            for each in (of_run, of_other)
        )
        assert set(first) == set(second)
        assert len(first) > 60 and first["actor/grad_norm"] > 0
        for name, value in first.items():
            if second[name] != pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True):
                found[name] = max(found.get(name, 0.0), abs(second[name] - value))
    return found


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four steps, a checkpoint after two."""
    run = start(tmp_path_factory.mktemp("uninterrupted"), *SETTINGS, ADAPTIVE)
    # Without dropout, both engines would agree to five digits; and the threshold moves.
    assert all(step.metrics["inference_mismatch/abs_prob_diff_mean"] > 0.01 for step in run.steps)
    assert len({step.metrics["trust_region/delta"] for step in run.steps}) == 4
    return run


def test_the_same_command_gives_the_same_metrics(
    uninterrupted_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    again = start(tmp_path_factory.mktemp("again"), *SETTINGS, ADAPTIVE)
    assert not _differences(uninterrupted_run, again, [1, 2, 3, 4])
    assert [step.validation for step in again.steps] == [step.validation for step in uninterrupted_run.steps]


def test_a_resumed_run_is_as_one_that_was_never_stopped(
    uninterrupted_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("resumed")
    checkpoint = "checkpoints/global_step_2"
    shutil.copytree(uninterrupted_run.folder / checkpoint, folder / checkpoint)
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    resumed = start(folder, *SETTINGS, ADAPTIVE, "trainer.resume_mode=auto")
    assert [step.step for step in resumed.steps] == [3, 4]
    assert not _differences(uninterrupted_run, resumed, [3, 4])


def test_methods_see_the_same_random_numbers(uninterrupted_run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    # In the first step all methods have the same weights; with other random numbers, rewards and lengths are others.
    other = start(
        tmp_path_factory.mktemp("other"), *SETTINGS, "method=dppo_topk_tv", "trainer.total_training_steps=1",
        "trainer.save_freq=-1", "trainer.test_freq=-1",
    )  # fmt: skip
    (step,) = other.steps
    first = uninterrupted_run.steps[0]
    assert "mismatch/partition_divergence_mean" in step.metrics
    for name in ("critic/score/mean", "response_length/mean", "mismatch/behaviour_log_prob_mean"):
        assert step.metrics[name] == pytest.approx(first.metrics[name], rel=1e-6)

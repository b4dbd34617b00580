"""Groups compared at the same seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drpo_verl.report.groups import Group, group_runs
from drpo_verl.report.load import load_runs
from drpo_verl.report.pairs import PairedDifference, bootstrap, compare, student

REWARD, HELD_OUT = "critic/score/mean", "val-core/math/acc/mean@1"
LUCK = {1: 0.3, 2: -0.2, 3: 0.05, 4: 0.0}
"""What a seed adds to every method."""
GAIN = {1: 0.10, 2: 0.12, 3: 0.08, 4: 0.14}
"""What the second method adds at that seed."""


@pytest.fixture
def make_seeded(make_run: Any) -> Any:
    def make(method: str, seed: int, steps: int = 20, **settings: Any) -> Path:
        settings = {"run.seed": seed, "data.seed": 7, **settings}
        reward = 0.5 + LUCK[seed] + (GAIN[seed] if method == "drpo" else 0.0)
        metrics: dict[int, dict[str, Any]] = {step: {REWARD: reward + step / 100} for step in range(1, steps + 1)}
        for step in range(10, steps + 1, 10):
            metrics[step][HELD_OUT] = reward / 2
        metrics = {0: {HELD_OUT: 0.1}, **metrics}
        folder: Path = make_run(f"{method}-{seed}-{len(settings)}", method, metrics=metrics, **settings)
        return folder

    return make


def _compared(paths: list[Path]) -> tuple[list[Group], list[PairedDifference]]:
    groups = group_runs(load_runs(paths))
    return groups, compare(groups[0], groups)


def test_what_the_seed_decides_cancels_out(make_seeded: Any) -> None:
    groups, compared = _compared([make_seeded(method, seed) for method in ("grpo", "drpo") for seed in (1, 2, 3, 4)])
    assert [(each.group.label, each.what) for each in compared] == [
        ("drpo", "reward at the end"), ("drpo", "reward, mean over the run"), ("drpo", "held-out accuracy"),
    ]  # fmt: skip
    end, whole, held_out = compared
    for each, factor in ((end, 1.0), (whole, 1.0), (held_out, 0.5)):
        assert list(each.differences) == pytest.approx([factor * GAIN[seed] for seed in (1, 2, 3, 4)])
        assert each.mean == pytest.approx(factor * 0.11) and each.same_sign == 4 and not each.early
        assert each.interval is not None and factor * 0.08 < each.interval[0] < each.mean < each.interval[1]
    assert (end.is_share, held_out.is_share) == (False, True)
    assert end.interval[1] - end.interval[0] < 0.06  # though the seeds are 0.5 apart
    (other_way, *_) = compare(groups[1], groups)
    assert other_way.mean == pytest.approx(-0.11) and other_way.group.label == "grpo"


def test_the_interval_is_that_of_the_bootstrap(make_seeded: Any) -> None:
    _, (end, *_) = _compared([make_seeded(method, seed) for method in ("grpo", "drpo") for seed in (1, 2, 3, 4)])
    # All 4 ** 4 samples of four pairs, instead of the ten thousand drawn.
    gains = np.array(list(GAIN.values()))
    means = gains[np.stack(np.meshgrid(*[range(4)] * 4), -1).reshape(-1, 4)].mean(1)
    assert end.interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.003)
    _, (again, *_) = _compared([make_seeded(method, seed, x=1) for method in ("grpo", "drpo") for seed in (1, 2, 3, 4)])
    assert again.interval == end.interval


def test_only_the_seeds_that_both_have_are_pairs(make_seeded: Any, make_run: Any) -> None:
    paths = [make_seeded("grpo", 1), make_seeded("grpo", 2), make_seeded("drpo", 2), make_seeded("drpo", 3)]
    _, (end, *_) = _compared([*paths, make_run("old", complete=False)])
    assert list(end.differences) == pytest.approx([GAIN[2]]) and end.interval is None
    assert _compared([make_seeded("grpo", 1, x=1), make_seeded("drpo", 2, x=1)])[1] == []


def test_runs_that_all_have_one_seed_are_a_pair(make_seeded: Any) -> None:
    _, (end, *_) = _compared([make_seeded("grpo", 3), make_seeded("drpo", 3)])
    assert list(end.differences) == pytest.approx([GAIN[3]])


def test_a_run_that_ended_early_is_compared_until_then(make_seeded: Any) -> None:
    planned = {"trainer.total_training_steps": 20}
    paths = [make_seeded(method, seed, **planned) for method in ("grpo", "drpo") for seed in (1, 2)]
    paths[2] = make_seeded("drpo", 1, steps=12, **planned, y=1)
    groups = group_runs(load_runs(paths), "run.method")
    end, whole, held_out = compare(groups[0], groups)
    for each in (end, whole):  # by the same rise over the steps, which the longer run has made more of
        assert list(each.differences) == pytest.approx([GAIN[1], GAIN[2]]) and each.early
    assert list(held_out.differences) == pytest.approx([GAIN[1] / 2, GAIN[2] / 2])


@pytest.mark.parametrize(("pairs", "coverage"), [(3, 0.75), (5, 0.84), (10, 0.91)])
def test_the_interval_holds_the_true_mean_as_often_as_the_page_says(pairs: int, coverage: float) -> None:
    normal = np.random.default_rng(1).standard_normal((1000, pairs))
    intervals = [bootstrap(differences)[1] for differences in normal]
    assert np.mean([low <= 0 <= high for low, high in filter(None, intervals)]) == pytest.approx(coverage, abs=0.03)


@pytest.mark.parametrize("pairs", [2, 3, 5, 10])
def test_students_interval_holds_the_true_mean_as_often_as_it_says(pairs: int) -> None:
    normal = np.random.default_rng(1).standard_normal((2000, pairs))
    intervals = [student(differences)[1] for differences in normal]
    assert np.mean([low <= 0 <= high for low, high in filter(None, intervals)]) == pytest.approx(0.95, abs=0.02)


def test_students_interval_needs_a_pair_and_a_few_at_most() -> None:
    assert student([0.5]) == (0.5, None)
    assert student([0.25, 0.25, 0.25]) == (0.25, (0.25, 0.25))
    with pytest.raises(ValueError, match="11 pairs"):
        student(np.zeros(11))

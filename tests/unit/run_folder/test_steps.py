"""Reading and showing what a run leaves behind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_verl.launch.console import describe, describe_distance
from drpo_verl.run_folder.steps import Step, StepReader, held_out_interval, read_steps, wilson_interval

LINES = (
    '{"step":0,"data":{"val-core/drpo_verl/arithmetic/acc/mean@1":0.25}}\n'
    '{"step":1,"data":{"critic/score/mean":0.5,"mismatch/abs_prob_diff_mean":0.001,"mismatch/abs_prob_diff_max":0.2,'
    '"trust_region/outside_frac":0.01,"timing_s/step":2.0}}\n'
)


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES + '{"step":2,"da')
    steps = read_steps(path)
    assert [step.step for step in steps] == [0, 1]
    assert steps[0].validation == {"drpo_verl/arithmetic": 0.25} and steps[1].validation == {}


def test_a_file_that_grows_is_read_once(tmp_path: Path) -> None:
    reader = StepReader(tmp_path / "metrics.jsonl")
    assert reader.new() == []
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for text, expected in (
            (LINES + '{"step":2,"da', [0, 1]),
            ("", []),
            ('ta":{}}\n{"step":3,"data":{}}\n', [2, 3]),
        ):
            file.write(text)
            file.flush()
            assert [step.step for step in reader.new()] == expected


def test_nan_is_read_back_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,"data":{"mismatch/abs_prob_diff_mean":null,"mismatch/abs_prob_diff_max":null}}\n')
    (step,) = read_steps(path)
    assert describe(step) == "|pi-mu| nan max nan"
    assert describe(Step(1, {"mismatch/abs_prob_diff_mean": 0.01})) == "|pi-mu| 1.0e-02 max nan"


def test_a_step_in_words(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES)
    before, first = read_steps(path)
    assert describe(before) == "held-out accuracy 0.250"
    assert describe(first) == "reward 0.500  |pi-mu| 1.0e-03 max 2.0e-01  outside 1.00%  2.0 s"


TWO_UPDATES = {
    "critic/score/mean": 0.5, "mismatch/abs_prob_diff_mean": 0.02, "mismatch/abs_prob_diff_max": 0.3,
    "inference_mismatch/abs_prob_diff_mean": 0.012, "policy_drift/abs_prob_diff_mean": 0.028,
}  # fmt: skip
ONE_UPDATE = {name: value for name, value in TWO_UPDATES.items() if not name.startswith("policy_drift")}


def test_mismatch_and_drift_are_told_apart_where_there_is_drift() -> None:
    assert describe(Step(1, TWO_UPDATES)) == ("reward 0.500  |pi-mu| mismatch 1.2e-02, with drift 2.8e-02, max 3.0e-01")
    assert describe(Step(1, ONE_UPDATE)) == "reward 0.500  |pi-mu| 2.0e-02 max 3.0e-01"


def test_mismatch_and_drift_of_a_run_in_a_sentence() -> None:
    other = {**TWO_UPDATES, "inference_mismatch/abs_prob_diff_mean": 0.014, "policy_drift/abs_prob_diff_mean": math.nan}
    start = "in a sampled token's probability, trainer and rollout engine differ by"
    steps = [Step(0, {}), Step(1, TWO_UPDATES), Step(2, other)]
    assert describe_distance(steps) == (
        f"{start} 0.013 before any update (mismatch) and by 0.028 after updates (mismatch and drift)"
    )
    assert describe_distance([Step(1, ONE_UPDATE)]) == f"{start} 0.012 before any update (mismatch)"
    assert describe_distance([Step(1, {"critic/score/mean": 0.5})]) == ""


# As verl logs two sources with 32 samples a problem, and `pred` among the reward's results.
TWO_SOURCES = {
    f"val-core/{source}/acc/{name}": value
    for source, mean in (("aime25", 0.21875), ("aime24", 0.34375))
    for name, value in (("best@32/mean", 0.8), ("best@32/std", 0.1), ("mean@32", mean), ("maj@32/mean", 0.5))
} | {"val-aux/aime24/acc/mean@16": 0.9, "val-aux/aime24/reward/mean@32": 0.9}


def test_each_data_source_has_its_accuracy() -> None:
    step = Step(0, TWO_SOURCES)
    assert list(step.validation.items()) == [("aime24", 0.34375), ("aime25", 0.21875)]
    assert describe(step) == "held-out accuracy: aime24 0.344, aime25 0.219"
    assert Step(0, {"val-core/reasoning_gym/chain_sum/reward/mean@1": 0.5}).validation == {
        "reasoning_gym/chain_sum": 0.5
    }


def test_the_interval_is_over_problems() -> None:
    assert held_out_interval(0.34375, 30) == wilson_interval(0.34375, 30)
    assert held_out_interval(0.34375, None) is None and held_out_interval(0.34375, 0) is None
    for score in (-0.5, 1.5, math.nan):  # of a reward that is no proportion
        assert held_out_interval(score, 30) is None


def test_wilson_interval_against_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_proportion(trial: tuple[int, int]) -> None:
    successes, count = trial
    low, high = wilson_interval(successes / count, count)
    assert 0.0 <= low <= successes / count <= high <= 1.0

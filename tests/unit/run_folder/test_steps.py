"""Reading and showing what a run leaves behind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_verl.launch.console import describe
from drpo_verl.run_folder.steps import Step, StepReader, draw, held_out_interval, read_steps, wilson_interval

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


def test_mismatch_and_drift_are_told_apart_where_there_is_drift() -> None:
    assert describe(Step(1, TWO_UPDATES)) == "reward 0.500  |pi-mu| mismatch 1.2e-02 drift 2.8e-02 max 3.0e-01"
    one_update = {name: value for name, value in TWO_UPDATES.items() if not name.startswith("policy_drift")}
    assert describe(Step(1, one_update)) == "reward 0.500  |pi-mu| 2.0e-02 max 3.0e-01"


@pytest.mark.parametrize(("drifts", "lines"), [
    (True, ["engine mismatch, mean", "with the drift of the updates, mean", "largest"]),
    (False, ["mean over tokens", "largest"]),
])  # fmt: skip
def test_the_picture_has_mismatch_and_drift_as_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drifts: bool, lines: list[str]
) -> None:
    import matplotlib
    from matplotlib import pyplot as plt

    matplotlib.use("Agg")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    metrics = {name: value for name, value in TWO_UPDATES.items() if drifts or not name.startswith("policy_drift")}
    draw([Step(1, metrics), Step(2, metrics)], tmp_path / "run.png", title="one")
    axes = plt.gcf().axes[1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == lines
    if drifts:
        assert [line.get_ydata()[0] for line in axes.get_lines()] == [0.012, 0.028, 0.3]
    monkeypatch.undo()
    plt.close("all")


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


def test_the_picture_has_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib
    from matplotlib import pyplot as plt

    matplotlib.use("Agg")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    steps = [Step(0, TWO_SOURCES), Step(1, {"critic/score/mean": 0.1}), Step(2, TWO_SOURCES)]
    draw(steps, tmp_path / "run.png", title="two", problems={"aime24": 30})
    axes = plt.gcf().axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "training samples (mean of the step)", "held-out accuracy on aime24, 95 % interval",
        "held-out accuracy on aime25",
    ]  # fmt: skip
    monkeypatch.undo()
    plt.close("all")


def test_wilson_interval_against_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_proportion(trial: tuple[int, int]) -> None:
    successes, count = trial
    low, high = wilson_interval(successes / count, count)
    assert 0.0 <= low <= successes / count <= high <= 1.0


def test_the_picture_is_drawn_whatever_metrics_there_are(tmp_path: Path) -> None:
    steps = [Step(0, {}), Step(1, {"critic/score/mean": 0.1}), Step(2, {"critic/score/mean": 0.2})]
    draw(steps, tmp_path / "run.png", title="a baseline without a trust region")
    steps.append(Step(3, dict.fromkeys(("critic/score/mean", "mismatch/abs_prob_diff_mean"), math.nan)))
    steps.append(Step(4, {"critic/score/mean": math.inf, "val-core/math/acc/mean@1": math.nan}))
    draw(steps, tmp_path / "run.png", title="a baseline without a trust region", problems={"math": 3})
    assert (tmp_path / "run.png").stat().st_size > 10_000

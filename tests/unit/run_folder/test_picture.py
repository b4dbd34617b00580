"""The picture of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drpo_verl.run_folder.picture import draw
from drpo_verl.run_folder.steps import Step

METRICS = {
    "critic/score/mean": 0.5, "mismatch/abs_prob_diff_mean": 0.02, "mismatch/abs_prob_diff_max": 0.3,
    "inference_mismatch/abs_prob_diff_mean": 0.012, "policy_drift/abs_prob_diff_mean": 0.028,
    "policy_drift/anchor_abs_prob_diff_mean": 0.02,
}  # fmt: skip
MISMATCH = ("before any update: mismatch of the two engines", 0.012)
TOGETHER = ("after updates: mismatch + drift of the policy", 0.028)
ALONE = (r"after updates: drift alone, $|\pi - \pi_\mathrm{old}|$", 0.02)
ALL = ("mismatch and drift, all updates", 0.02)

Drawn = Callable[..., list[Any]]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drawn]:
    """Draws, and returns the axes of the picture, which ``draw`` would close."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)

    def axes(steps: list[Step], **others: Any) -> list[Any]:
        draw(steps, tmp_path / "run.png", title="one", **others)
        assert (tmp_path / "run.png").stat().st_size > 10_000
        return plt.gcf().axes

    yield axes
    monkeypatch.undo()
    plt.close("all")


def _labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(("left_out", "lines"), [
    ((), [TOGETHER, ALONE, MISMATCH]),
    (("anchor",), [TOGETHER, MISMATCH]),
    (("policy_drift",), [MISMATCH]),  # one update a rollout
    (("policy_drift", "inference_mismatch"), [ALL]),  # diagnostics=false
])  # fmt: skip
def test_mismatch_and_drift_are_two_lines(drawn: Drawn, left_out: tuple[str, ...], lines: list[Any]) -> None:
    metrics = {name: value for name, value in METRICS.items() if not any(part in name for part in left_out)}
    (_, axes, _) = drawn([Step(1, metrics), Step(2, metrics)])
    assert [(line.get_label(), *set(line.get_ydata())) for line in axes.get_lines()] == lines
    assert _labels(axes) == [label for label, _ in lines]
    assert axes.get_ylim()[0] == 0 and "probability" in axes.get_ylabel()


def test_every_data_source_has_its_accuracy(drawn: Drawn) -> None:
    validation = {"val-core/aime24/acc/mean@32": 0.34375, "val-core/aime25/acc/mean@32": 0.21875}
    steps = [Step(0, validation), Step(1, {"critic/score/mean": 0.1}), Step(2, validation)]
    axes, *_ = drawn(steps, problems={"aime24": 30})
    assert _labels(axes) == [
        "training samples (mean of the step)", "held-out accuracy on aime24, 95 % interval",
        "held-out accuracy on aime25",
    ]  # fmt: skip


def test_it_is_drawn_whatever_metrics_there_are(drawn: Drawn) -> None:
    steps = [Step(0, {}), Step(1, {"critic/score/mean": 0.1}), Step(2, {"critic/score/mean": 0.2})]
    drawn(steps)
    steps.append(Step(3, dict.fromkeys(METRICS, math.nan)))
    steps.append(Step(4, {"critic/score/mean": math.inf, "val-core/math/acc/mean@1": math.nan}))
    drawn(steps, problems={"math": 3})

"""Alerts: one for each crossing, in words that name the setting; and a wrong setting is refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from drpo_verl.configuration import search_path
from drpo_verl.metrics.alerts import Alert, Monitor, parse_alerts
from drpo_verl.run_folder.steps import read_steps

REAL = Path(__file__).parents[2] / "data" / "dppo_topk_tv.jsonl"


def _announced(alert: Alert, values: list[float]) -> list[int]:
    monitor = Monitor([alert])
    return [step for step, value in enumerate(values) if monitor.observe(step, {alert.metric: value})]


@pytest.mark.parametrize(
    ("steps", "values", "announced"),
    [
        (1, [0.0, 1.0, 1.1, 1.2, 5.0, 5.0], [3]),  # once, however long and far it goes
        (1, [1.2, 1.05, 1.2, 1.0, 1.2], [0]),  # to and fro about the threshold
        (1, [1.2, 0.9, 1.2], [0, 2]),  # back by the hysteresis, and again
        (2, [1.2, 0.5, 1.2, 0.5, 1.2], []),  # never two in a row
        (2, [1.2, 1.2, 0.5, 1.2, 1.2, 1.2], [1]),  # back for one step only
        (2, [1.2, 1.2, 0.5, 0.5, 1.2, 1.2], [1, 5]),
        (2, [math.inf, math.inf], [0, 1]),  # at once as not finite, then as a crossing
        (2, [1.2, math.nan, 1.2], [1, 2]),  # NaN is on neither side of the threshold
    ],
)
def test_one_announcement_a_crossing(steps: int, values: list[float], announced: list[int]) -> None:
    above = Alert("kl", "mismatch/kl", above=1.1, steps=steps, hysteresis=0.1)
    assert _announced(above, values) == announced
    below = Alert("kl", "mismatch/kl", below=-1.1, steps=steps, hysteresis=0.1)
    assert _announced(below, [-value for value in values]) == announced


@given(st.lists(st.floats(-2, 2), max_size=60), st.integers(1, 4), st.floats(0, 1))
def test_announcements_are_apart_by_twice_the_steps(values: list[float], steps: int, hysteresis: float) -> None:
    announced = _announced(Alert("a", "m", above=0.5, steps=steps, hysteresis=hysteresis), values)
    assert all(later - earlier >= 2 * steps for earlier, later in itertools.pairwise(announced))
    assert all(value > 0.5 for step in announced for value in values[step - steps + 1 : step + 1])


def test_a_collapse_is_announced_before_the_reward_falls() -> None:
    # The real run's metrics, whose entropy and mismatch then go as in a collapse while the reward holds for a while.
    monitor = Monitor(parse_alerts(_defaults()))
    real = read_steps(REAL)[-1].metrics
    said: dict[int, list[str]] = {}
    for step in range(1, 31):
        metrics = {
            **real,
            "critic/score/mean": 0.5 if step < 25 else 0.5 - (step - 24) * 0.08,
            "mismatch/behaviour_log_prob_mean": -0.46 * 0.85**step,
            "mismatch/kl": 0.006 * 1.25**step,
            "mismatch/abs_prob_diff_mean": 0.015 * 1.15**step,
        }
        for notice in monitor.observe(step, metrics):
            said.setdefault(step, []).append(notice.title)
    assert sorted(title for titles in said.values() for title in titles) == [
        "entropy below 0.05", "mismatch/abs_prob_diff_mean above 0.1", "mismatch/kl above 0.1",
    ]  # fmt: skip
    assert max(said) < 25


def test_the_real_run_gives_no_alarm() -> None:
    monitor = Monitor(parse_alerts(_defaults()))
    assert [monitor.observe(step.step, step.metrics) for step in read_steps(REAL)] == [[], [], []]


def test_a_notice_names_step_value_threshold_setting_and_what_to_do() -> None:
    alert = Alert("kl", "mismatch/kl", above=0.1, steps=2, advice="Look at it.")
    monitor = Monitor([alert])
    assert monitor.observe(7, {"mismatch/kl": 0.2}) == []
    (notice,) = monitor.observe(8, {"mismatch/kl": 0.12345})
    assert notice.text == "step 8: mismatch/kl is 0.123, above 0.1 for 2 steps (alerts.kl). Look at it."
    assert (notice.title, notice.level) == ("mismatch/kl above 0.1", "WARN")
    (notice,) = Monitor([Alert("long", "m" * 80, above=0, steps=1)]).observe(1, {"m" * 80: 1})
    assert len(notice.title) < 64  # wandb's limit


def test_entropy_is_that_of_verl_or_its_estimate() -> None:
    alert = Alert("entropy", "entropy", below=0.1)
    assert alert.value({"mismatch/behaviour_log_prob_mean": -0.4}) == 0.4
    assert alert.value({"mismatch/behaviour_log_prob_mean": -0.4, "actor/entropy": 0.3}) == 0.3
    assert alert.value({}) is None


@pytest.mark.parametrize(
    "name",
    ["actor/pg_loss", "actor/kl_loss", "actor/grad_norm", "critic/vf_loss", "critic/grad_norm", "critic/score/mean",
     "actor/entropy", "mismatch/kl", "mismatch/behaviour_log_prob_mean", "inference_mismatch/chi2",
     "policy_drift/ratio_max", "trust_region/weight_mean", "rollout_corr/kl", "training/rollout_probs_diff_mean",
     "actor/kl_penalty", "distillation_loss", "response_length/mean"],
)  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_is_said_at_once_and_once(name: str, value: float) -> None:
    watched = [Alert("length", "response_length/mean", above=9000, steps=99)]
    for alerts in (watched, []) if name != "response_length/mean" else (watched,):
        monitor = Monitor(alerts)
        sound = {name: 0.5, "note": "text", "timing_s/step": 1.0, "response_length/mean": 3.0, "count": 3}
        assert monitor.observe(1, sound) == []
        (notice,) = monitor.observe(2, {**sound, name: value})
        called = "NaN" if math.isnan(value) else "+inf" if value > 0 else "-inf"
        assert notice.text.startswith(f"step 2: {name} is {called}. What is not finite")
        assert (notice.title, notice.level) == (f"{name} is {called}"[:63], "ERROR")
        assert [monitor.observe(step, {**sound, name: value}) for step in range(3, 9)] == [[]] * 6


def test_what_is_nan_from_the_first_step_is_said_to_be_nan_and_not_to_be_missing() -> None:
    monitor = Monitor(parse_alerts(_defaults()))
    metrics = {"mismatch/abs_prob_diff_mean": math.nan, "mismatch/kl": math.nan, "actor/entropy": math.nan}
    notices = [notice for step in range(1, 30) for notice in monitor.observe(step, metrics)]
    (notice,) = notices
    assert notice.text.startswith(
        "step 1: mismatch/abs_prob_diff_mean is NaN, mismatch/kl is NaN, actor/entropy is NaN. What is not finite"
    )


def test_when_all_is_lost_one_notice_names_the_loss_and_the_gradient_first() -> None:
    metrics = {f"mismatch/{number}": math.nan for number in range(40)}
    metrics |= {"actor/grad_norm": math.inf, "actor/pg_loss": math.nan, "timing_s/step": math.nan}
    (notice,) = Monitor([], nan="NaN or infinite").observe(7, metrics)
    assert notice.text.startswith(
        "step 7: actor/pg_loss is NaN or infinite, actor/grad_norm is +inf, mismatch/0 is NaN or infinite, "
        "mismatch/1 is NaN or infinite, and 38 more metrics are not finite. What"
    )


def test_what_is_not_finite_again_is_said_again_after_ten_sound_steps() -> None:
    monitor = Monitor([])
    broken = [1, 3, 9, 22, 23]
    said = [
        step for step in range(1, 30) if monitor.observe(step, {"actor/grad_norm": math.inf if step in broken else 1})
    ]
    assert said == [1, 22]
    # Steps that do not have it, such as a validation, count for nothing.
    monitor = Monitor([])
    said = [
        step for step in range(1, 30) if monitor.observe(step, {"actor/grad_norm": math.inf} if step in broken else {})
    ]
    assert said == [1]


def test_what_may_be_undefined_in_a_sound_run_is_no_alarm() -> None:
    undefined = {"training/rollout_actor_probs_pearson_corr": math.nan, "val-aux/math/acc/std@1": math.nan}
    assert Monitor([]).observe(1, undefined) == []


def test_a_metric_that_never_comes_is_said_once() -> None:
    monitor = Monitor([Alert("kl", "mismatch/lk", above=0.1), Alert("score", "critic/score/mean", above=2)])
    metrics = {"mismatch/kl": 0.01, "critic/score/mean": 0.5, "note": "text"}
    notices = [notice for step in range(1, 40) for notice in monitor.observe(step, metrics)]
    (notice,) = notices
    assert notice.level == "INFO" and "alerts.kl watches mismatch/lk" in notice.text
    assert "alerts.kl.metric (logged are mismatch/kl" in notice.text and "~alerts.kl" in notice.text


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kl": {"above": 0.1}}, r"alerts\.kl\.metric='' must be the name of a logged metric, or entropy"),
        ({"kl": {"metric": 3, "above": 0.1}}, r"alerts\.kl\.metric=3 must be"),
        ({"kl": {"metric": "m"}}, r"alerts\.kl has above=None and below=None: set exactly one"),
        ({"kl": {"metric": "m", "above": 1, "below": 0}}, r"alerts\.kl has above=1 and below=0: set exactly one"),
        ({"kl": {"metric": "m", "above": "x"}}, r"alerts\.kl\.above='x' must be a number"),
        ({"kl": {"metric": "m", "below": math.nan}}, r"alerts\.kl\.below=nan must be a number"),
        ({"kl": {"metric": "m", "above": True}}, r"alerts\.kl\.above=True must be a number"),
        ({"kl": {"metric": "m", "above": 1, "steps": 0}}, r"alerts\.kl\.steps=0 must be a whole number of at least 1"),
        ({"kl": {"metric": "m", "above": 1, "steps": 1.5}}, r"alerts\.kl\.steps=1\.5 must be"),
        ({"kl": {"metric": "m", "above": 1, "hysteresis": -0.1}}, r"alerts\.kl\.hysteresis=-0\.1 is a share"),
        ({"kl": {"metric": "m", "above": 1, "advice": 1}}, r"alerts\.kl\.advice=1 must be text"),
        ({"kl": {"metric": "m", "abvoe": 1}}, r"alerts\.kl\.abvoe is not a setting of an alert: metric, above, below"),
        ({"kl": 0.1}, r"alerts\.kl=0\.1 must be a mapping.*~alerts\.kl removes"),
        ([1], r"alerts=\[1\] must be a mapping"),
    ],
)
def test_a_wrong_setting_is_refused(section: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_alerts(section)


def test_no_section_no_alerts() -> None:
    assert parse_alerts(None) == [] and Monitor([]).observe(1, {"mismatch/kl": 9.0}) == []


def _defaults(*overrides: str) -> Any:
    search_path.register()
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        return compose("train", ["experiment=cpu_tiny", *overrides]).get("alerts")


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("alerts.kl.above=0.3", ["mismatch", "kl", "entropy"]),
        ("~alerts.kl", ["mismatch", "entropy"]),
        ("~alerts", []),
        ("+alerts.length={metric: response_length/mean, above: 6}", ["mismatch", "kl", "entropy", "length"]),
    ],
)
def test_alerts_are_ordinary_overrides(override: str, names: list[str]) -> None:
    alerts = {alert.name: alert for alert in parse_alerts(_defaults(override))}
    assert list(alerts) == names
    if override.startswith("alerts.kl"):
        assert alerts["kl"].above == 0.3

"""Logged metrics, watched step by step: what is not finite, and thresholds, since mismatch moves before the reward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from numbers import Real
from typing import Any, Literal

from drpo_verl.metrics import names

SECTION = "alerts"
ENTROPY = "entropy"
"""In place of a metric's name: ``actor/entropy``, or its estimate from the sampled tokens where verl computes none."""

_LONGEST_TITLE = 63  # wandb's limit
_PATIENCE = 10
_MOST_NAMED = 4

_FINITE = ("actor/", "critic/", *names.NAMESPACES, *names.OF_VERL)
"""The beginnings of the names of metrics that are finite as long as training is sound."""
_UNDEFINED_WHERE_CONSTANT = "pearson_corr"


@dataclass(frozen=True)
class Alert:
    """One entry of the configuration's section ``alerts``.

    Args:
        name: the entry's key.
        metric: the name of a logged metric, or ``entropy``.
        above: the threshold that the metric is to stay below, in its own unit; None when there is ``below``.
        below: the threshold that the metric is to stay above; None when there is ``above``.
        steps: how many steps in a row make a crossing, and how many a return; >= 1.
        hysteresis: how far behind the threshold the metric has returned, as a share of abs(threshold); >= 0.
        advice: what a crossing means and what to do about it, as sentences to be shown with it.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """

    name: str
    metric: str
    above: float | None = None
    below: float | None = None
    steps: int = 2
    hysteresis: float = 0.1
    advice: str = ""

    def __post_init__(self) -> None:
        """Validate; see the class."""
        if not isinstance(self.metric, str) or not self.metric:
            self._refuse("metric", f"must be the name of a logged metric, or {ENTROPY}.")
        if (self.above is None) == (self.below is None):
            raise ValueError(
                f"{SECTION}.{self.name} has above={self.above} and below={self.below}: set exactly one of the two."
            )
        for name in ("above", "below"):
            value = getattr(self, name)
            if value is not None and not _is_finite(value):
                self._refuse(name, "must be a number.")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            self._refuse("steps", "must be a whole number of at least 1.")
        if not _is_finite(self.hysteresis) or self.hysteresis < 0:
            self._refuse("hysteresis", "is a share of the threshold: it must be a number of at least 0.")
        if not isinstance(self.advice, str):
            self._refuse("advice", "must be text.")

    def _refuse(self, setting: str, remedy: str) -> None:
        raise ValueError(f"{SECTION}.{self.name}.{setting}={getattr(self, setting)!r} {remedy}")

    @property
    def condition(self) -> str:
        """What is announced, in words."""
        return f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"

    def is_beyond(self, value: float) -> bool:
        """Whether a value is on the wrong side of the threshold."""
        return value > self.above if self.above is not None else value < self._threshold

    def is_back(self, value: float) -> bool:
        """Whether a value is on the right side, and away from the threshold by the hysteresis."""
        margin = self.hysteresis * abs(self._threshold)
        return value <= self._threshold - margin if self.above is not None else value >= self._threshold + margin

    @property
    def _threshold(self) -> float:
        threshold = self.above if self.above is not None else self.below
        assert threshold is not None  # __post_init__
        return threshold

    def value(self, metrics: Mapping[str, Any]) -> float | None:
        """The watched value among a step's metrics, which may be NaN; None when there is no number."""
        sign, name = 1.0, self.metric
        if name == ENTROPY:
            sign, name = (1.0, names.ENTROPY) if names.ENTROPY in metrics else (-1.0, names.BEHAVIOUR_LOG_PROB)
        value = metrics.get(name)
        return sign * float(value) if isinstance(value, Real) else None


def parse_alerts(section: Any) -> list[Alert]:
    """The alerts that a run's configuration asks for.

    Args:
        section: ``alerts`` of the configuration: a mapping of names to settings, or None.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """
    if section is None:
        return []
    example = "{metric: mismatch/kl, above: 0.1}"
    if not isinstance(section, Mapping):
        raise ValueError(f"{SECTION}={section!r} must be a mapping of names to settings like {example}.")
    known = [each.name for each in fields(Alert) if each.name != "name"]
    alerts = []
    for name, settings in section.items():
        if not isinstance(settings, Mapping):
            raise ValueError(
                f"{SECTION}.{name}={settings!r} must be a mapping like {example}. ~{SECTION}.{name} removes an alert."
            )
        for setting in settings:
            if setting not in known:
                raise ValueError(f"{SECTION}.{name}.{setting} is not a setting of an alert: {', '.join(known)}.")
        alerts.append(Alert(**{"metric": "", **settings, "name": str(name)}))
    return alerts


@dataclass(frozen=True)
class Notice:
    """What is to be said after a step.

    Args:
        title: short enough for ``wandb.alert``.
        text: sentences with the step, the value and the setting.
        level: of ``wandb.alert``.
    """

    title: str
    text: str
    level: Literal["ERROR", "WARN", "INFO"]


class _Watch:
    """Where one alert stands: raised or not, and for how many steps in a row the contrary has been seen."""

    def __init__(self, alert: Alert) -> None:
        self.alert = alert
        self.seen = False
        self._raised = False
        self._run = 0

    def crosses(self, value: float) -> bool:
        """Take a step's value; true in the step in which the threshold counts as crossed. NaN is on neither side."""
        self.seen = True
        if math.isnan(value):
            return False
        contrary = self.alert.is_back(value) if self._raised else self.alert.is_beyond(value)
        self._run = self._run + 1 if contrary else 0
        if self._run < self.alert.steps:
            return False
        self._run = 0
        self._raised = not self._raised
        return self._raised


class _NotFinite:
    """The metrics that have been said to be not finite, each with how many steps in a row it has been finite since."""

    def __init__(self, watched: Iterable[str], nan: str) -> None:
        self._watched = frozenset(watched)
        self._nan = nan
        self._said: dict[str, int] = {}

    def _is_watched(self, name: str) -> bool:
        listed = name.startswith(_FINITE) or "loss" in name or "grad_norm" in name or name in self._watched
        return listed and not name.endswith(_UNDEFINED_WHERE_CONSTANT)

    def observe(self, step: int, metrics: Mapping[str, Any]) -> Notice | None:
        """Take a step's metrics; one notice about all that were finite before, or were never said not to be."""
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
        broken = {name: value for name, value in numbers.items() if not math.isfinite(value) and self._is_watched(name)}
        new = [name for name in broken if name not in self._said]
        steps_since = {name: 0 if name in broken else since + (name in numbers) for name, since in self._said.items()}
        self._said = {name: since for name, since in steps_since.items() if since < _PATIENCE} | dict.fromkeys(new, 0)
        return _not_finite(step, {name: broken[name] for name in new}, self._nan) if new else None


class Monitor:
    """Watches the metrics of a run: one notice for each crossing, and none while a metric stays where it is.

    A loss, a gradient norm, a mismatch or another metric of the training that is not finite is announced in the step in
    which it is so for the first time, and again only after it has been finite for ten steps; without any alert, too.

    Args:
        alerts: the thresholds.
        nan: what NaN is called: in verl's metrics file it may have been infinity.
    """

    def __init__(self, alerts: Sequence[Alert], nan: str = "NaN") -> None:
        self._watches = [_Watch(alert) for alert in alerts]
        self._not_finite = _NotFinite((alert.metric for alert in alerts), nan)
        self._logged = 0

    def observe(self, step: int, metrics: Mapping[str, Any]) -> list[Notice]:
        """Take the metrics logged for a step, and return what there is to be said, mostly nothing.

        Any of the watched metrics may be missing, and those that are not numbers are passed over.
        """
        not_finite = self._not_finite.observe(step, metrics)
        notices = [not_finite] if not_finite else []
        for watch in self._watches:
            value = watch.alert.value(metrics)
            if value is not None and watch.crosses(value):
                notices.append(_crossing(watch.alert, step, value))
        self._logged += 1
        if self._logged == _PATIENCE:
            notices += [_never_logged(watch.alert, metrics) for watch in self._watches if not watch.seen]
        return notices


def _not_finite(step: int, broken: Mapping[str, float], nan: str) -> Notice:
    def weight(name: str) -> int:  # losses and gradient norms before what is computed beside them
        return next(place for place, part in enumerate(("loss", "grad_norm", "")) if part in name)

    called = {name: nan if math.isnan(value) else f"{value:+}" for name, value in broken.items()}
    first, *others = (f"{name} is {called[name]}" for name in sorted(broken, key=weight))
    named, more = others[: _MOST_NAMED - 1], len(others) - (_MOST_NAMED - 1)
    told = ", ".join([first, *named, *([f"and {more} more metrics are not finite"] if more > 0 else [])])
    advice = (
        "What is not finite in the loss or the gradient is not learned from, and may have spoilt the weights: look at "
        "the steps before, and if it lasts, go on from a checkpoint before it with a lower learning rate or a higher "
        "precision."
    )
    return Notice(first[:_LONGEST_TITLE], f"step {step}: {told}. {advice}", "ERROR")


def _crossing(alert: Alert, step: int, value: float) -> Notice:
    lasting = f" for {alert.steps} steps" if alert.steps > 1 else ""
    text = f"step {step}: {alert.metric} is {value:.3g}, {alert.condition}{lasting} ({SECTION}.{alert.name})."
    return Notice(f"{alert.metric} {alert.condition}"[:_LONGEST_TITLE], f"{text} {alert.advice}".strip(), "WARN")


def _never_logged(alert: Alert, metrics: Mapping[str, Any]) -> Notice:
    # A misspelt name would otherwise be an alert that never comes.
    close = get_close_matches(alert.metric, list(metrics), n=3)
    meant = f" (logged are {', '.join(close)})" if close else ""
    return Notice(
        f"{alert.metric} is not logged"[:_LONGEST_TITLE],
        f"{SECTION}.{alert.name} watches {alert.metric}, which the first {_PATIENCE} steps have not logged: correct "
        f"{SECTION}.{alert.name}.metric{meant}, or remove the alert with ~{SECTION}.{alert.name}.",
        "INFO",
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""How a logged metric is described: metrics with a common unit are a panel, panels about one thing a section."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from drpo_verl.metrics.bins import PROBABILITY_BINS


@dataclass(frozen=True)
class Metric:
    """A number that is logged at each step.

    Attributes:
        name: as it is logged, without the namespaces of its section, if that has any; ``<bin>`` stands for each bin of
            mu, any other ``<...>`` for what only a run knows.
        meaning: what it measures, as a phrase that begins with a capital letter.
        bad: what a bad value looks like; empty when no value is bad by itself.
        label: what tells it from the other metrics of its panel.
        factor: what a report multiplies it by, where what it stands for is a multiple of it.
    """

    name: str
    meaning: str
    bad: str = ""
    label: str = ""
    factor: float = 1.0

    @property
    def pattern(self) -> str:
        """A regular expression for the names that it has in runs, where these are for a run to know; else empty."""
        known, unknown, _ = self.name.partition("<")
        return f"^{known}.*" if unknown else ""

    @property
    def by_bin(self) -> dict[str, str]:
        """The name for each bin of mu, by the name of the bin."""
        return {name: self.name.replace("<bin>", name) for name in PROBABILITY_BINS}


@dataclass(frozen=True)
class Panel:
    """Metrics that share a unit and a chart.

    Attributes:
        title: of the chart; empty for metrics that are documented and not drawn.
        unit: of the values; empty for a pure number.
        metrics: the most telling first, since a report draws three lines at most.
        kind: ``lines`` over the steps, ``bins`` of mu at a run's end, ``held_out`` accuracy with its intervals, or the
            ``phases`` of a step.
        log: whether the axis of the values is logarithmic.
        reference: a value to compare with.
        unless_zero: whether a report leaves it out where all is 0, as it is by construction for some trainers.
        shared_axis: panels of a section with the same one, other than empty, have the same range of values.
    """

    title: str
    unit: str
    metrics: Sequence[Metric]
    kind: Literal["lines", "bins", "held_out", "phases"] = "lines"
    log: bool = False
    reference: float | None = None
    unless_zero: bool = False
    shared_axis: str = ""

    @property
    def is_share(self) -> bool:
        """Whether the values are parts of a whole, to be written in percent."""
        return self.unit.startswith("share")

    @property
    def key(self) -> str:
        """Its name in a page: that of its first metric."""
        return re.sub(r"\W+", "_", re.sub(r"<\w+>_?", "", self.metrics[0].name)).strip("_")

    def within(self, namespace: str, title: str) -> Panel:
        """The panel of the metrics in one namespace; those of all namespaces share an axis."""
        return replace(
            self,
            title=f"{title}: {self.title}",
            metrics=[replace(metric, name=f"{namespace}/{metric.name}") for metric in self.metrics],
            shared_axis=self.unit if self.kind == "bins" else self.title,
        )


@dataclass(frozen=True)
class Section:
    """Panels under a heading.

    Attributes:
        key: unique; its name in a page.
        title: the heading.
        text: what a reader has to know beforehand; metric names in backquotes.
        panels: in order.
        namespaces: where the same metrics are logged more than once, the namespaces with their titles.
    """

    key: str
    title: str
    text: str
    panels: Sequence[Panel]
    namespaces: Sequence[tuple[str, str]] = ()

    @property
    def charts(self) -> list[Panel]:
        """The panels to be drawn, with the full names of their metrics: one for each namespace."""
        drawn = [panel for panel in self.panels if panel.title]
        return [panel.within(*namespace) for panel in drawn for namespace in self.namespaces] or drawn

    @property
    def names(self) -> Iterator[str]:
        """The full names of all metrics, each bin of mu with its own."""
        for panel in self.panels:
            for metric in panel.metrics:
                for name in metric.by_bin.values() if panel.kind == "bins" else [metric.name]:
                    yield from [f"{namespace}/{name}" for namespace, _ in self.namespaces] or [name]

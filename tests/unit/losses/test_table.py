"""Adding a method to the table of objectives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from drpo_verl.losses import OBJECTIVES, Objective, register_objective, table
from drpo_verl.losses.enforcement import GATED_QUADRATIC, HARD_MASK, NONE
from drpo_verl.losses.geometry import BINARY_KL, PROBABILITY, RATIO

ROW = Objective(RATIO, HARD_MASK, "a test")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table without what a test has added."""
    before = dict(OBJECTIVES)
    monkeypatch.setattr(table, "_OBSERVERS", [])
    yield
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


def test_whoever_wants_every_objective_gets_those_of_before_and_after() -> None:
    register_objective("before", ROW)
    seen: dict[str, Objective] = {}
    table.for_each_objective(seen.__setitem__)
    assert seen == OBJECTIVES and "before" in seen
    register_objective("after", ROW)
    assert seen["after"] is OBJECTIVES["after"] is ROW


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("drpo", ROW, r"the name is taken \(DRPO, arXiv"),
        ("my-method", ROW, "letters, digits and underscores"),
        ("", ROW, "letters, digits and underscores"),
        (None, ROW, "letters, digits and underscores"),
        ("mine", (RATIO, HARD_MASK), "no Objective"),
        ("mine", Objective(HARD_MASK, RATIO, "a test"), "a Geometry and an Enforcement, in this order"),
        ("mine", Objective(PROBABILITY, GATED_QUADRATIC, "a test"), "needs a mask_geometry"),
        ("mine", Objective(BINARY_KL, GATED_QUADRATIC, "a test", mask_geometry=RATIO), "a geometry with a penalty"),
        ("mine", Objective(PROBABILITY, NONE, "a test", adaptive=True), "no threshold to adapt"),
    ],
)
def test_what_can_not_be_one_is_refused_and_said(
    name: Any, row: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = dict(OBJECTIVES)
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match=message):
        register_objective(name, row)
    assert before == OBJECTIVES
    assert f"the objective {name!r} is not registered" in caplog.text  # verl hides what a plugin raises


def test_one_that_an_observer_refuses_is_not_in_the_table() -> None:
    def refuse(name: str, row: Objective) -> None:
        if name == "mine":
            raise RuntimeError("taken by verl")

    table.for_each_objective(refuse)
    with pytest.raises(RuntimeError, match="taken by verl"):
        register_objective("mine", ROW)
    assert "mine" not in OBJECTIVES

"""Adding a method to the table of objectives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from drpo_verl.losses import OBJECTIVES, Objective, register_objective, table
from drpo_verl.losses.enforcement import GATED_QUADRATIC, HARD_MASK, NONE
from drpo_verl.losses.geometry import BINARY_KL, DIRECTION_ONLY, PROBABILITY, RATIO, Geometry, TokenRatio

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


@pytest.mark.parametrize("geometry", [PROBABILITY, RATIO, DIRECTION_ONLY], ids=["probability", "ratio", "direction"])
def test_a_penalty_with_a_factor_is_that_times_distance_and_half_step(geometry: Geometry) -> None:
    log_mu = -6 * torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    tokens = TokenRatio.of(
        (log_mu + torch.randn(4, 64, generator=torch.Generator().manual_seed(1))).clamp(max=0), log_mu
    )
    assert geometry.penalty is not None and geometry.penalty_factor is not None
    expected = geometry.penalty_factor * geometry.distance(tokens) * tokens.ratio_minus_one
    torch.testing.assert_close(geometry.penalty(tokens), expected)

"""The controller of delta: bounded steps towards a target, and a state that survives."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpo_verl.losses.adaptive import DeltaController

START = DeltaController(delta=0.2, target=0.1, gain=0.3, max_step=1.2, delta_min=0.01, delta_max=2.0)


@given(outside=st.floats(0, 1e6), more=st.floats(0, 1e6))
def test_each_step_is_bounded(outside: float, more: float) -> None:
    controller = replace(START)
    controller.update(outside, outside + more)
    assert START.delta / 1.2 * (1 - 1e-12) <= controller.delta <= START.delta * 1.2 * (1 + 1e-12)


def test_it_finds_the_threshold_with_the_target_share_outside() -> None:
    draw = random.Random(0)
    controller = replace(START, delta=1.5)
    for _ in range(300):
        distances = [draw.expovariate(10.0) for _ in range(2000)]  # P(D > delta) = exp(-10 delta)
        controller.update(sum(distance > controller.delta for distance in distances), len(distances))
    assert controller.delta == pytest.approx(0.2303, rel=0.1)  # exp(-10 * 0.2303) = 0.1


def test_it_stays_within_its_range_and_without_tokens_where_it_is() -> None:
    controller = replace(START)
    for _ in range(100):
        controller.update(0, 1000)
    assert controller.delta == 0.01
    for _ in range(100):
        controller.update(1000, 1000)
    assert controller.delta == 2.0
    controller.update(0, 0)
    assert controller.delta == 2.0


def test_it_goes_on_from_its_state_under_the_settings_of_the_new_run() -> None:
    controller = replace(START, delta=0.77)
    again = replace(START, target=0.5)
    again.load_state_dict(controller.state_dict())
    assert again.delta == 0.77 and again.target == 0.5
    narrower = replace(START, delta_max=0.5)
    narrower.load_state_dict(controller.state_dict())
    assert narrower.delta == 0.5

"""The picture of every method's weight shows every method."""

from __future__ import annotations

import pytest
import torch

from benchmarks.weights import ROWS, weight
from drpo_verl.losses import OBJECTIVES

PANELS = [panel for panels in ROWS.values() for panel in panels]


def test_every_method_has_a_panel() -> None:
    assert {panel.name for panel in PANELS} == {*OBJECTIVES} - {"drpo_adaptive"}  # it is drpo, with a delta that moves


def test_a_decoupled_weight_is_one_where_pi_is_pi_old() -> None:
    (panel,) = (panel for panel in PANELS if panel.name == "drpo_decoupled")
    pi = torch.tensor([0.5 + panel.staleness, 0.5, 0.5 + panel.staleness + 0.2])
    assert weight(panel, 0.5, pi, 1.0).tolist() == pytest.approx([1.0, 1.0 + panel.staleness / 0.2, 0.0], abs=1e-5)

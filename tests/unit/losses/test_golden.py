"""What every method computes does not change unnoticed."""

from __future__ import annotations

import json

import golden
import pytest

from drpo_verl.losses import OBJECTIVES

EXPECTED = json.loads(golden.FILE.read_text())
COMPUTED = golden.compute()


@pytest.mark.parametrize("name", list(EXPECTED))
def test_loss_gradient_and_metrics_are_as_they_were(name: str) -> None:
    for part in ("loss", "gradient"):
        for computed, expected in zip(COMPUTED[name][part], EXPECTED[name][part], strict=True):
            assert computed == pytest.approx(expected, rel=2e-6, abs=1e-9), part
    assert COMPUTED[name]["metrics"] == pytest.approx(EXPECTED[name]["metrics"], rel=2e-6, abs=1e-9)


def test_there_is_one_for_every_method() -> None:
    assert {name.removesuffix(" capped") for name in EXPECTED} == set(OBJECTIVES)

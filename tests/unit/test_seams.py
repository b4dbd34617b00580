"""Attaching to foreign modules: late, once, and loud when it fails."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest

from drpo_verl.seams import SUPPORTED_VERL, SeamError, expect, expect_parameters, when_imported


def test_what_is_already_imported_is_attached_to_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_foreign_module")
    monkeypatch.setitem(sys.modules, "a_foreign_module", module)
    seen: list[ModuleType] = []
    when_imported("a_foreign_module", "Nothing works.")(seen.append)
    assert seen == [module]


def test_a_seam_that_differs_is_a_warning_and_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "another_foreign_module", ModuleType("another_foreign_module"))

    def attach(module: ModuleType) -> None:
        expect_parameters(lambda loss_mat: None, "agg_loss", "loss_mat", "dp_size")

    with caplog.at_level(logging.WARNING):
        when_imported("another_foreign_module", "No loss is registered.")(attach)
    assert "another_foreign_module" in caplog.text and "agg_loss" in caplog.text and "dp_size" in caplog.text
    assert "No loss is registered." in caplog.text and str(SUPPORTED_VERL) in caplog.text


def test_expectations() -> None:
    expect(True, "seam", "something")
    with pytest.raises(SeamError, match="seam: expected something"):
        expect(False, "seam", "something")


@pytest.mark.parametrize(
    ("version", "supported"), [("0.9.0", True), ("0.9.7", True), ("0.8.9", False), ("0.10.0", False)]
)
def test_supported_versions(version: str, supported: bool) -> None:
    assert (version in SUPPORTED_VERL) is supported

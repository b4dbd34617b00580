"""Attaching to foreign modules: late, once, and loud when it fails."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.specifiers import SpecifierSet

from drpo_verl import seams
from drpo_verl.seams import SUPPORTED_VERL, SeamError, expect, expect_parameters, missing_plugin, when_imported


@pytest.fixture(autouse=True)
def other_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is attached to here is none of the package's seams."""
    monkeypatch.setattr(seams, "SEAMS", [])


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


def warnings_of(program: str) -> list[str]:
    """What a process warns of, in which no seam of other tests is registered."""
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return [line for line in run.stderr.splitlines() if line.startswith("drpo-verl: ")]


def test_modules_that_verl_does_not_have_are_named() -> None:
    assert warnings_of(
        "from drpo_verl import seams\n"
        "seams.when_imported('verl.no_such_module', 'Nothing works.')(print)\n"
        "seams.when_imported('verl.trainer.main_ppo', 'This works.')(print)\n"
        "seams.warn_of_missing_modules()\n"
    ) == ["drpo-verl: verl.no_such_module does not exist. Nothing works."]


@pytest.mark.parametrize(
    ("version", "supported"), [("0.8.9", False), ("0.9.0", True), ("0.9.7", True), ("0.10.0", False)]
)
def test_a_verl_that_is_not_supported_is_named(version: str, supported: bool) -> None:
    warnings = warnings_of(
        "from importlib import metadata\n"
        "of = metadata.version\n"
        f"metadata.version = lambda name: {version!r} if name == 'verl' else of(name)\n"
        "import drpo_verl.plugin\n"
    )
    expected = f"verl {version} is installed, and drpo-verl supports verl {SUPPORTED_VERL}."
    assert (not warnings) if supported else (len(warnings) == 1 and expected in warnings[0])


def test_a_plugin_that_can_not_be_loaded_says_so() -> None:
    (warning,) = warnings_of("import sys\nsys.modules['wrapt'] = None\nimport drpo_verl.plugin\n")
    assert "the plugin could not be loaded (ModuleNotFoundError" in warning and "none of it is active" in warning
    assert "Reinstall it with its dependencies." in warning


def test_a_missing_plugin_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drpo_verl.plugin", ModuleType("drpo_verl.plugin"))
    assert missing_plugin() is None
    monkeypatch.delitem(sys.modules, "drpo_verl.plugin")
    for value, allowed in (("none", False), ("other", False), ("", False), ("auto", True), ("a, drpo_verl", True)):
        monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", value)
        missing = missing_plugin()
        assert missing is not None
        assert missing[:2] == (("drpo_verl.plugin", None) if allowed else ("VERL_USE_EXTERNAL_PLUGINS", value))


def test_expectations() -> None:
    expect(True, "seam", "something")
    with pytest.raises(SeamError, match="seam: expected something"):
        expect(False, "seam", "something")


def test_the_supported_versions_are_the_same_wherever_they_are_named() -> None:
    root = Path(__file__).parents[2]
    (named,) = re.findall(r"verl ?(>=[\d.]+,<[\d.]+\d)", (root / "pyproject.toml").read_text())
    assert SpecifierSet(named, prereleases=True) == SUPPORTED_VERL

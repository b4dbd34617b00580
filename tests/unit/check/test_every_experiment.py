"""Every experiment with every method composes, and the check finds no error in it."""

from __future__ import annotations

import pytest

from drpo_verl.check.command import check_run
from drpo_verl.integration.search_path import config_dir

_EXPERIMENTS = config_dir() / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(_EXPERIMENTS).with_suffix("")) for path in _EXPERIMENTS.rglob("*.yaml"))
METHODS = sorted(path.stem for path in (config_dir() / "method").glob("*.yaml"))

EXPECTED: dict[tuple[str, str], set[str]] = {}
"""The rules whose errors are expected of an experiment with a method (either may be "*"), with the reason."""


def _expected(experiment: str, method: str) -> set[str]:
    keys = [(experiment, method), (experiment, "*"), ("*", method)]
    return set().union(*(EXPECTED.get(key, set()) for key in keys))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_passes_with_every_method(experiment: str) -> None:
    wrong = {}
    for method in METHODS:
        errors = [
            each
            for each in check_run([f"experiment={experiment}", f"method={method}"]).findings
            if each.level == "error"
        ]
        if {each.rule for each in errors} != _expected(experiment, method):
            wrong[method] = [f"{each.rule}: {each}" for each in errors] or "an error that is expected has gone"
    assert not wrong


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_rule_fails(experiment: str) -> None:
    findings = check_run([f"experiment={experiment}"]).findings
    assert not [str(each) for each in findings if each.setting.startswith("rule ") or each.rule == "summary"]

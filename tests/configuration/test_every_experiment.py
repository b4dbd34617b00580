"""Every experiment passes the whole check, verl's own validation included, with its own method and the most demanding.

With every method: test_experiments.py.
"""

from __future__ import annotations

import pytest

from drpo_verl.check.command import check_run
from drpo_verl.integration.search_path import config_dir

_EXPERIMENTS = config_dir() / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(_EXPERIMENTS).with_suffix("")) for path in _EXPERIMENTS.rglob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("method", [[], ["method=dppo_topk_kl"]], ids=["its own method", "top-k"])
def test_it_passes_and_no_rule_fails(experiment: str, method: list[str]) -> None:
    findings = check_run([f"experiment={experiment}", *method]).findings
    assert not [str(each) for each in findings if each.level == "error"]
    assert not [str(each) for each in findings if each.setting.startswith("rule ") or each.rule == "summary"]
    # What a GPU would answer with a crash, an hour later, when the weights are there.
    assert not [str(each) for each in findings if each.rule in ("fp8", "memory") and each.level != "note"]

"""The studies of this repository: each of their runs can start."""

from __future__ import annotations

from pathlib import Path

import pytest

from drpo_verl.configuration.compose import compose_run
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.preflight import check_run
from drpo_verl.study.execute import overrides_of
from drpo_verl.study.plan import read_plan

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_run_of_a_study_passes_the_check(path: Path, tmp_path: Path) -> None:
    plan = read_plan(path)
    for run in {run.overrides: run for run in plan.runs}.values():
        findings = check_run(RunConfig(compose_run(list(overrides_of(plan, run, tmp_path)))))
        assert not [each for each in findings if each.level == "error"], run.name

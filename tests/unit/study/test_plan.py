"""The file of a study: which runs it plans, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from drpo_verl.errors import UserError
from drpo_verl.study.plan import Collapse, read_plan

STUDY: dict[str, Any] = {
    "name": "map",
    "base": ["experiment=cpu_tiny"],
    "seeds": [1, 2],
    "collapse": {"steps": 2, "below": 0.5},
    "axes": {
        "mismatch": {"fp32": ["precision=cpu_fp32"], "int4": ["precision=cpu_int4_weights"]},
        "method": {"drpo": ["method=drpo"], "surrogate": ["method=surrogate"]},
    },
    "cells": [{"mismatch": "int4"}, {"mismatch": ["fp32", "int4"], "method": ["drpo"], "seeds": [1, 2, 3]}],
}


def _write(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "study.yaml"
    content = {name: value for name, value in {**STUDY, **changes}.items() if value is not None}
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return path


def test_runs_are_the_cells_in_their_order_and_none_is_there_twice(tmp_path: Path) -> None:
    plan = read_plan(_write(tmp_path))
    assert [run.name for run in plan.runs] == [
        "int4-drpo-seed1", "int4-drpo-seed2", "int4-surrogate-seed1", "int4-surrogate-seed2",
        "fp32-drpo-seed1", "fp32-drpo-seed2", "fp32-drpo-seed3", "int4-drpo-seed3",
    ]  # fmt: skip
    assert plan.runs[0].overrides == ("experiment=cpu_tiny", "precision=cpu_int4_weights", "method=drpo")
    assert plan.runs[0].choices == {"mismatch": "int4", "method": "drpo"} and plan.axes == ("mismatch", "method")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a/b"}, "name='a/b'"),
        ({"cels": []}, "knows no cels"),
        ({"axes": None}, "lacks axes"),
        ({"seeds": []}, "the seeds"),
        ({"seeds": [1.5]}, "the seeds"),
        ({"seeds": [True]}, "the seeds"),
        ({"base": "experiment=cpu_tiny"}, "in base"),
        ({"collapse": {"steps": 2}}, "needs `steps` and `below`"),
        ({"axes": {"method": {}}}, "without choices"),
        ({"axes": {"method": {"drpo": ["drpo"]}}}, "in axes.method.drpo"),
        ({"cells": [{"method": "dppo"}]}, "knows drpo, surrogate"),
        ({"cells": [{"delta": "0.2"}]}, "which is no axis"),
        ({"cells": ["drpo"]}, "names no choices"),
        (
            {"axes": {"a": {"x": [], "x-y": []}, "b": {"z": [], "y-z": []}}, "cells": [{}]},
            "two runs with the name x-y-z-seed1",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_plan(_write(tmp_path, **changes))


def test_a_file_that_is_no_study(tmp_path: Path) -> None:
    for text in ("- a\n- b\n", "{", ""):
        (tmp_path / "no.yaml").write_text(text)
        with pytest.raises(UserError, match=r"no\.yaml is no study|no\.yaml lacks"):
            read_plan(tmp_path / "no.yaml")
    with pytest.raises(UserError, match="is no study"):
        read_plan(tmp_path / "missing.yaml")


def test_a_collapse_is_a_fall_of_the_mean_reward() -> None:
    collapse = Collapse(steps=2, below=0.5)
    assert collapse.happened([0.4, 0.4, 0.1, 0.9, 0.1, 0.2]) is True
    assert collapse.happened([0.4, 0.4, 0.3, 0.2]) is False
    assert collapse.happened([0.4, 0.4, 0.1]) is None


def test_the_studies_of_this_repository_are_studies() -> None:
    for path in sorted((Path(__file__).parents[3] / "studies").glob("*.yaml")):
        plan = read_plan(path)
        assert plan.runs and plan.question

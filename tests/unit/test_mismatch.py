"""What is made of the committed measurements of the mismatch: tables that say what they say, and a picture of all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.mismatch import MODELS, PRECISIONS, RESULTS
from benchmarks.mismatch_page import PAGES, TITLES, draw, table, with_table

ROOT = Path(__file__).parents[2]
CELLS = json.loads((ROOT / RESULTS).read_text())


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_tables_are_those_of_the_committed_measurements(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert with_table(text, filter(PAGES[page], CELLS)) == text, "run `python -m benchmarks.mismatch --draw`"


def test_every_cell_is_one_of_the_plan_and_has_its_settings() -> None:
    assert list(PRECISIONS) == list(TITLES)
    for cell in CELLS:
        wanted = {**MODELS[cell["model"]], **PRECISIONS[cell["precision"]]}
        assert {name: cell["settings"][name] for name in wanted} == {
            name: str(value) if isinstance(value, Path) else value for name, value in wanted.items()
        }


def test_the_order_of_the_precisions_is_what_the_pages_say() -> None:
    """fp16 is closer than bf16, and fewer bits of a weight are further away, for every model that has been measured."""
    found = {(cell["model"], cell["precision"]): cell["mismatch"]["abs_prob_diff_mean"] for cell in CELLS}
    for model in {cell["model"] for cell in CELLS}:
        for nearer, further in (("fp32", "fp16"), ("fp16", "bf16"), ("int8", "int4"), ("int4", "int3")):
            if (model, nearer) in found and (model, further) in found:
                assert found[model, nearer] < found[model, further], (model, nearer, further)


def test_the_picture_has_every_cell(tmp_path: Path) -> None:
    draw(CELLS, tmp_path / "all.png")
    draw(CELLS[:1], tmp_path / "one.png")
    with Image.open(tmp_path / "all.png") as every, Image.open(tmp_path / "one.png") as one:
        assert every.width > 1000 and every.height > one.height


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the two lines"):
        with_table("no marks", [])


def test_a_line_of_the_table_has_the_figures_of_its_cell() -> None:
    cell = {
        "model": "tiny", "precision": "int4", "tokens": 1234, "suggested_delta": 0.0512,
        "mismatch": {"abs_prob_diff_mean": 0.00049, "abs_prob_diff_p99": 0.031, "abs_prob_diff_max": 0.4,
                     "ratio_p01": 0.5, "ratio_p99": 1.75, "ratio_max": 12.0, "ess": 0.987654},
        "methods": {"grpo_clip_higher": {"removed": [0.02, 0.04]}, "dppo_binary_tv": {"removed": [0.0, 0.0]}},
    }  # fmt: skip
    assert table([cell]).splitlines()[-1] == (
        "| tiny, dense | weights through int4, fp32 | 4.9e-04, 0.031, 0.4 | 0.5, 1.75, 12 | 98.77 % | 3 % | 0 "
        "| 0.051 | 1,234 |"
    )

"""The tables of the documentation against what they are about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from drpo_verl.configuration import search_path
from drpo_verl.losses import OBJECTIVES

ROOT = Path(__file__).parents[2]


def _first_cells(page: str) -> Iterator[list[str]]:
    """The code in the first cell of each row of its tables."""
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith("| `"):
            yield re.findall(r"`([^`]+)`", line.split("|")[1])


def test_every_method_is_in_the_tables_with_its_source() -> None:
    methods = {path.stem for path in (search_path.config_dir() / "method").glob("*.yaml")}
    assert methods <= {name for cell in _first_cells("methods.md") for name in cell}
    readme = {name for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")
              for name in re.findall(r"`([^`]+)`", line.split("|")[1])}  # fmt: skip
    assert methods <= readme
    page = (ROOT / "docs" / "methods.md").read_text()
    for objective in OBJECTIVES.values():
        for paper in re.findall(r"arXiv [\d.]+\d", objective.source):
            assert paper in page, objective.source

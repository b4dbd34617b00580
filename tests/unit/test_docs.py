"""The tables, links and commands of the documentation against what they are about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from methods_table import current

from drpo_verl.configuration import search_path
from drpo_verl.losses import OBJECTIVES

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "docker/*.md", "recipes/**/*.md", "benchmarks/**/*.md")
    for path in sorted(ROOT.glob(pattern))
]


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


def test_the_tables_of_methods_are_those_of_the_code() -> None:
    for path, page in current():
        assert path.read_text(encoding="utf-8") == page, "run `make docs`"


def _anchors(page: Path) -> set[str]:
    """Those that GitHub gives to the page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_targets_of_make_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {name for line in re.findall(r"^([a-z0-9 -]+):", makefile, re.MULTILINE) for name in line.split()}
    for line in re.findall(r"(?:^|`)make ((?:[a-z0-9-]+ ?)+)", page.read_text(), re.MULTILINE):
        assert set(line.split()) <= targets, line


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_named_where_one_reads_on() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, page.name

"""Writes the tables of the metrics' catalogue into a page: ``python docs/metrics_tables.py docs/metrics.md``."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import fill

from marked import replaced

from drpo_verl.metrics.catalogue import SECTIONS
from drpo_verl.metrics.description import Section

BEGIN = "<!-- The sections below are made from drpo_verl/metrics/catalogue.py by `make docs`. -->"
END = "<!-- The end of what `make docs` makes. -->"

_WIDTH = 120


def with_tables(page: str) -> str:
    """A page with the catalogue's sections between its two marks, whatever stands there.

    Args:
        page: Markdown with the lines ``BEGIN`` and ``END``.

    Raises:
        ValueError: when it does not have each of them once, in this order.
    """
    return replaced(page, BEGIN, END, "\n\n".join(map(_section, SECTIONS)))


def _section(section: Section) -> str:
    table = ["| metric | unit | meaning | what bad looks like |", "|---|---|---|---|"] + [
        f"| `{metric.name}` | {panel.unit or '1'} | {metric.meaning} | {metric.bad or '–'} |"
        for panel in section.panels
        for metric in panel.metrics
    ]
    text = fill(section.text, _WIDTH)
    return "\n\n".join(part for part in (f"## {section.title}", text, "\n".join(table)) if part)


def main() -> None:
    """Update the page that is the first argument."""
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

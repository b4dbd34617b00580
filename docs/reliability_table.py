"""Writes what the tests of faults have seen into a page: ``python docs/reliability_table.py FAULTS.jsonl PAGE.md``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from marked import replaced

BEGIN = "<!-- The table below is made from the runs of `make test-faults` by `make reliability`. -->"
END = "<!-- The end of what `make reliability` makes. -->"

_HEAD = (
    "| fault | what the run says | exit code | ends after | all gone after | how to go on |",
    "|---|---|---|---|---|---|",
)


def with_table(page: str, faults: list[dict[str, Any]]) -> str:
    """A page with a row for each fault between its two marks, whatever stands there.

    Args:
        page: Markdown with the lines ``BEGIN`` and ``END``.
        faults: what ``tests/faults`` has noted.

    Raises:
        ValueError: when it does not have each of them once, in this order.
    """
    return replaced(page, BEGIN, END, "\n".join([*_HEAD, *map(_row, faults)]))


def _row(fault: dict[str, Any]) -> str:
    name = fault["fault"]
    if "line" not in fault:
        return f"| {name} | nothing: it goes on | 0 | | | |"
    said = fault["line"].removeprefix("error: ")
    why, _, how = re.split(r"(, (?:in step \d+|before the end of step 1|after step \d+)[^.]*\. )", said, maxsplit=1)
    why = re.sub(r"process \d+|kill -CONT \d+", lambda match: re.sub(r"\d+", "N", match[0]), why)
    why = re.sub(r"/\S+/", ".../", why)
    go_on = "the printed command, from the last checkpoint" if "the checkpoint of" in how else "anew: no checkpoint yet"
    times = [_seconds(fault[each]) for each in ("seconds", "gone_seconds")]
    return f"| {' | '.join([name, why.replace('|', '/'), str(fault['exit_code']), *times, go_on])} |"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def _main(faults: Path, page: Path) -> None:
    # The tests run side by side, and note what they see as it comes.
    records = sorted((json.loads(line) for line in faults.read_text().splitlines()), key=lambda each: each["fault"])
    page.write_text(with_table(page.read_text(), records))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))

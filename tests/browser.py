"""Opening an HTML file in headless Chromium, and what plotly drew there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)  # fmt: skip
_SECONDS = 240
_VIRTUAL_MILLISECONDS = 120_000


@dataclass
class DrawnChart:
    """A chart in the page: for each trace the outlines of its lines, areas, points and bars."""

    traces: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What Chromium made of a page: its elements without scripts, and its console (errors, blocked requests)."""

    html: str
    charts: dict[str, DrawnChart]
    console: list[str]


def open_page(file: Path, *, width: int = 1280) -> Page:
    """Open a file and wait until its scripts have nothing left to do.

    Args:
        file: the HTML file.
        width: of the window, in CSS pixels.
    """
    with tempfile.TemporaryDirectory() as profile:
        result = subprocess.run(
            [
                _chromium(), *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900",
                f"--virtual-time-budget={_VIRTUAL_MILLISECONDS}", "--dump-dom", file.absolute().as_uri(),
            ],
            capture_output=True, text=True, timeout=_SECONDS, check=True,
        )  # fmt: skip
    html = re.sub(r"<script\b.*?</script>", "", result.stdout, flags=re.DOTALL)
    reader = _Reader()
    reader.feed(html)
    return Page(html, reader.charts, [line for line in result.stderr.splitlines() if ":CONSOLE:" in line])


def _chromium() -> str:
    path = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if path is None:
        reason = f"none of {', '.join(_NAMES)} is installed: `make browser` does it on Debian"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return path


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.charts: dict[str, DrawnChart] = {}
        self._chart: DrawnChart | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        classes = attributes.get("class", "").split()
        if tag == "div" and "chart" in classes:
            self._chart = self.charts[attributes["id"].removeprefix("chart-")] = DrawnChart()
        elif tag == "figcaption":
            self._chart = None
        elif self._chart is not None:
            if tag == "g" and "trace" in classes:
                self._chart.traces.append([])
            elif tag == "g" and ("zerolinelayer-above" in classes or "infolayer" in classes):
                self._chart = None
            elif tag == "path" and self._chart.traces:
                self._chart.traces[-1].append(attributes.get("d", ""))

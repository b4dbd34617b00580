"""Building and installing wheels, from what this environment has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_module(*arguments: str) -> None:
    """Run ``python -m`` at the repository's root."""
    subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, capture_output=True, timeout=400)


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a project, or of its source distribution, into a new folder."""
    run_module("pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel, without what it depends on, into a folder of its own, which is returned."""
    run_module("pip", "install", "--no-deps", "--target", str(folder), str(wheel))
    return folder

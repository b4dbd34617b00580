"""What a run says about where it ran."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

from drpo_verl import __version__
from drpo_verl.run_folder.environment import ENVIRONMENT_FILE, write_environment


def test_versions_of_the_stack_are_written(tmp_path: Path) -> None:
    write_environment(tmp_path)
    written = json.loads((tmp_path / ENVIRONMENT_FILE).read_text())
    assert written["drpo-verl"] == __version__
    assert written["verl"] == version("verl") and written["torch"] == version("torch") and written["ray"]
    assert written["vllm"]  # whichever build
    assert written["python"] == platform.python_version() and written["platform"] == platform.platform()
    assert int(written["cpus"]) >= 1

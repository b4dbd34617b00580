"""Reading an offline wandb run with wandb's own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from drpo_verl.adapters.tracking import WORST_TOKENS


def records(wandb_folder: Path) -> list[dict[str, Any]]:
    """The records of the only run in a ``wandb`` folder, in their order."""
    (path,) = wandb_folder.glob("offline-run-*/run-*.wandb")
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)],
        env={**os.environ, "WANDB_MODE": "offline"}, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in read.stdout.splitlines()]


def of_type(kind: str, run: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The contents of the records of one type."""
    return [record[kind] for record in run if record["type"] == kind]


def history(run: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The logged metrics by step, without wandb's own and without the table of worst tokens."""
    items = [entry["item"] for entry in of_type("history", run)]
    others = ("_", f"{WORST_TOKENS}.")
    return {
        item["_step"]: {name: value for name, value in item.items() if not name.startswith(others)} for item in items
    }


def table(wandb_folder: Path, key: str) -> list[list[Any]]:
    """The rows of a table that was logged step by step, in any order."""
    files = wandb_folder.glob(f"offline-run-*/files/media/table/{key}_*.table.json")
    return [row for file in files for row in json.loads(file.read_text())["data"]]

"""Writes parquet files and their manifest, each complete or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from drpo_verl.data import rows as reading
from drpo_verl.data import source as sources
from drpo_verl.data.table import DATASETS, Part
from drpo_verl.errors import UserError
from drpo_verl.run_folder.environment import describe_environment

MANIFEST_FILE = "manifest.json"


def default_folder(name: str) -> Path:
    """Return the folder of a data set in the configurations: in `$DRPO_VERL_DATA`, or beside the prepared models."""
    from drpo_verl.models.cache import default_dir

    return Path(os.environ.get("DRPO_VERL_DATA") or default_dir() / "data").expanduser() / name


def from_source(name: str, copy: Path | None, out: Path, *, accept_changes: bool, console: Console) -> dict[str, Any]:
    """Write a data set of the table.

    Args:
        name: of the data set, a key of `DATASETS`.
        copy: a local copy of its repository, or one file of it; None for the hub.
        out: the folder to write.
        accept_changes: accept files and numbers of problems that differ from the papers or the earlier manifest.
        console: where the progress is shown.

    Returns:
        The manifest.

    Raises:
        UserError: the source is missing, broken or another one. Nothing is written then.
    """
    dataset = DATASETS[name]
    earlier = _earlier(out, dataset.repository)
    files = sources.fetch(dataset) if copy is None else sources.find(dataset, copy)
    outputs: dict[str, list[dict[str, Any]]] = {}
    parts = []
    with progress_bar(console) as progress:
        verified = sources.verify(dataset, files, earlier, accept_changes=accept_changes, progress=progress)
        for part in dataset.parts:
            of_part = {file: files.paths[file] for file in sources.matching(part.files, files.paths)}
            if not of_part and (accept_changes or (copy is not None and copy.is_file())):
                continue
            # An edition that is not known says by nothing but its rows whether they are whole.
            rows, counts = reading.read(part, of_part, progress, drop_empty=not accept_changes)
            parts.append({**asdict(part), **asdict(counts)})
            if not accept_changes:
                _require_count(dataset.repository, part, len(rows))
            if not rows:
                raise UserError(f"{', '.join(map(str, of_part.values()))} has no problem: give files with some.")
            outputs.setdefault(part.output, []).extend(rows)
    for rows in outputs.values():
        for index, row in enumerate(rows):
            row["extra_info"]["index"] = index
    return write(
        out,
        outputs,
        {
            "dataset": name,
            "source": {
                "repository": dataset.repository,
                "revision": files.revision,
                "from": None if copy is None else str(copy.absolute()),
                "files": verified,
            },
            "parts": parts,
            "changes_accepted": accept_changes,
        },
    )


def write(out: Path, outputs: Mapping[str, list[dict[str, Any]]], manifest: dict[str, Any]) -> dict[str, Any]:
    """Write rows as parquet files, and the manifest last; each file gets its name when it is complete.

    Args:
        out: the folder to write; created if absent.
        outputs: rows by the name of the file, without its suffix.
        manifest: the manifest without outputs, time and versions.

    Returns:
        The manifest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, rows in outputs.items():
        path = out / f"{name}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(rows), partial)
        partial.replace(path)
        files[path.name] = {"rows": len(rows), "bytes": path.stat().st_size, "sha256": sources.sha256(path)}
    whole = {
        **manifest,
        "outputs": files,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": describe_environment("pyarrow", "huggingface_hub", "reasoning-gym", "math-verify"),
    }
    partial = (out / MANIFEST_FILE).with_suffix(".partial")
    partial.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    partial.replace(out / MANIFEST_FILE)
    return whole


def _require_count(repository: str, part: Part, count: int) -> None:
    low, high = part.expected
    if not low <= count <= high:
        wanted = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        raise UserError(
            f"{part.files} of {repository} gives {count:,} problems, not {wanted}: a part of it is missing, or it is "
            "another edition. Download it again; --accept-changes takes it as it is, and records it."
        )


def _earlier(out: Path, repository: str) -> dict[str, Any]:
    path = out / MANIFEST_FILE
    if not path.exists():
        return {}
    try:
        source = json.loads(path.read_text())["source"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged: delete it, and with it the record of the source's hashes.") from error
    files: dict[str, Any] = source.get("files", {}) if source.get("repository") == repository else {}
    return files


def progress_bar(console: Console) -> Progress:
    """Return a progress bar with the time that remains, for bytes, rows, problems or responses."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn(),
        console=console,
    )  # fmt: skip

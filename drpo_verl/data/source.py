"""The files of a data set: from the hub or a local copy, whole and unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import Progress

from drpo_verl.data.table import Dataset
from drpo_verl.errors import UserError

_BLOCK = 8 << 20
_TAKE_IT = "--accept-changes takes it as it is, and records it"


@dataclass(frozen=True)
class Files:
    """What was found.

    Attributes:
        paths: of the files by their names in the repository.
        sha256: what the hub says of them, where it was asked.
        revision: the commit; None for a local copy, which does not say.
    """

    paths: Mapping[str, Path]
    sha256: Mapping[str, str]
    revision: str | None


def fetch(dataset: Dataset) -> Files:
    """Download what is not in huggingface_hub's cache yet.

    huggingface_hub takes a broken connection up again where it broke, and does not download a finished file twice.

    Raises:
        UserError: with the way around a hub that can not be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().dataset_info(dataset.repository, revision=dataset.revision, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        names = [name for part in dataset.parts for name in matching(part.files, siblings)]
        paths = {
            name: Path(hf_hub_download(dataset.repository, name, repo_type="dataset", revision=info.sha))
            for name in names
        }
    # An unreachable host is an httpx error, an OSError or a RuntimeError of several kinds, depending on how it fails.
    except Exception as error:
        raise UserError(
            f"{dataset.repository} can not be downloaded ({type(error).__name__}: {_first_line(error)}). Run it again "
            f"to go on, or where there is a network: hf download {dataset.repository} --repo-type dataset "
            f"--revision {dataset.revision or 'main'} --local-dir COPY; then here: --from COPY."
        ) from error
    hub = {name: siblings[name].lfs for name in paths}
    return Files(paths, {name: lfs.sha256 for name, lfs in hub.items() if lfs is not None}, info.sha)


def find(dataset: Dataset, copy: Path) -> Files:
    """The files in a local copy: the repository's folder, or one of its files.

    Raises:
        UserError: nothing there is a file of the data set.
    """
    copy = copy.expanduser()
    if copy.is_dir():
        names = {path.relative_to(copy).as_posix(): path for path in sorted(copy.rglob("*")) if path.is_file()}
        paths = {name: names[name] for part in dataset.parts for name in matching(part.files, names)}
    elif copy.is_file():
        fitting = [part for part in dataset.parts if PurePosixPath(copy.name).match(PurePosixPath(part.files).name)]
        paths = {str(PurePosixPath(part.files).with_name(copy.name)): copy for part in fitting[:1]}
    else:
        raise UserError(f"--from={str(copy)!r} does not exist: give a copy of {dataset.repository}, or a file of it.")
    if not paths:
        raise UserError(
            f"--from={str(copy)!r} has none of the files {', '.join(part.files for part in dataset.parts)}: give a "
            f"copy of {dataset.repository} (hf download {dataset.repository} --repo-type dataset --local-dir COPY)."
        )
    return Files(paths, {}, None)


def verify(
    dataset: Dataset, files: Files, earlier: Mapping[str, Any], *, accept_changes: bool, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Hash the files, and compare them with what they have to be.

    Args:
        dataset: of the table, with the hashes that are known.
        files: to be looked at.
        earlier: what an earlier manifest says of the files, by name.
        accept_changes: take what differs from both.
        progress: of the hashing.

    Returns:
        bytes and sha256 of each file, by name.

    Raises:
        UserError: a file is not the one that the hub, the table or the earlier manifest names.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, path in files.paths.items():
        found[name] = {"bytes": path.stat().st_size, "sha256": sha256(path, progress)}
        have = found[name]["sha256"]
        expected = files.sha256.get(name)
        if expected not in (None, have):
            raise UserError(
                f"{path} is not what the hub has as {name} (sha256 {have[:12]}, not {expected[:12]}): it is "
                "truncated or damaged. Delete it and run this again."
            )
        if accept_changes:
            continue
        pinned = dataset.sha256.get(name)
        if pinned not in (None, have):
            raise UserError(
                f"{path} is not the {name} that is known (sha256 {have[:12]}, not {pinned[:12]}; "
                f"{path.stat().st_size:,} bytes): truncated, or another edition. Download it again; {_TAKE_IT}."
            )
        before = earlier.get(name, {}).get("sha256")
        if before not in (None, have):
            raise UserError(
                f"{path} has changed since the manifest was written (sha256 {have[:12]}, was {before[:12]}): "
                f"truncated, or another edition. Restore it; {_TAKE_IT}."
            )
    return found


def sha256(path: Path, progress: Progress | None = None) -> str:
    """The hash of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    task = progress.add_task(f"hashing {path.name}", total=path.stat().st_size) if progress else None
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if progress and task is not None:
                progress.advance(task, len(block))
    return digest.hexdigest()


def matching(pattern: str, names: Mapping[str, Any]) -> list[str]:
    """Those of the names that a pattern of the table stands for, in order."""
    depth = len(PurePosixPath(pattern).parts)
    return sorted(n for n in names if PurePosixPath(n).match(pattern) and len(PurePosixPath(n).parts) == depth)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]

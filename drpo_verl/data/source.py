"""Finds the files of a data set on the hub or in a local copy, and verifies that they are whole and unchanged."""

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
_ACCEPT_CHANGES = "--accept-changes takes it as it is, and records it"


@dataclass(frozen=True)
class Files:
    """The files of a data set.

    Attributes:
        paths: their paths, by their names in the repository.
        sha256: the hashes that the hub has of them, by name; empty for a local copy.
        revision: the commit; None for a local copy, which does not tell.
    """

    paths: Mapping[str, Path]
    sha256: Mapping[str, str]
    revision: str | None


def fetch(dataset: Dataset) -> Files:
    """Download the files that are not in huggingface_hub's cache yet.

    huggingface_hub resumes a download after a broken connection, and does not download a finished file twice.

    Raises:
        UserError: the hub can not be reached; the message has a way around it.
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
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{dataset.repository} can not be downloaded ({type(error).__name__}: {reason}). Run it again "
            f"to go on, or where there is a network: hf download {dataset.repository} --repo-type dataset "
            f"--revision {dataset.revision or 'main'} --local-dir COPY; then here: --from COPY."
        ) from error
    hub = {name: siblings[name].lfs for name in paths}
    return Files(paths, {name: lfs.sha256 for name, lfs in hub.items() if lfs is not None}, info.sha)


def find(dataset: Dataset, copy: Path) -> Files:
    """Find the files of a data set in a local copy: the repository's folder, or one of its files.

    Raises:
        UserError: the copy has no file of the data set.
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
    """Hash the files, and compare the hashes with those of the hub, the table and an earlier manifest.

    Args:
        dataset: a data set of the table, with the hashes that are known.
        files: the files to verify.
        earlier: what an earlier manifest records of the files, by name.
        accept_changes: accept files that differ from the table or the manifest.
        progress: shows how much has been hashed.

    Returns:
        bytes and sha256 of each file, by name.

    Raises:
        UserError: a file is not the one that the hub, the table or the earlier manifest names.
    """
    verified: dict[str, dict[str, Any]] = {}
    for name, path in files.paths.items():
        have = sha256(path, progress)
        verified[name] = {"bytes": path.stat().st_size, "sha256": have}
        expected = files.sha256.get(name)
        if expected not in (None, have):
            raise UserError(
                f"{path} is not what the hub has as {name} (sha256 {have[:12]}, not {expected[:12]}): it is "
                "truncated or damaged. Delete it and run this again."
            )
        if accept_changes:
            continue
        pinned, before = dataset.sha256.get(name), earlier.get(name, {}).get("sha256")
        if pinned not in (None, have):
            raise UserError(
                f"{path} is not the {name} that is known (sha256 {have[:12]}, not {pinned[:12]}; "
                f"{path.stat().st_size:,} bytes): truncated, or another edition. Download it again; {_ACCEPT_CHANGES}."
            )
        if before not in (None, have):
            raise UserError(
                f"{path} has changed since the manifest was written (sha256 {have[:12]}, was {before[:12]}): "
                f"truncated, or another edition. Restore it; {_ACCEPT_CHANGES}."
            )
    return verified


def sha256(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    task = progress.add_task(f"hashing {path.name}", total=path.stat().st_size) if progress else None
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if progress and task is not None:
                progress.advance(task, len(block))
    return digest.hexdigest()


def matching(pattern: str, names: Mapping[str, Any]) -> list[str]:
    """Return the names that a pattern of the table stands for, in order; a pattern does not match in subfolders."""
    depth = len(PurePosixPath(pattern).parts)
    return sorted(n for n in names if PurePosixPath(n).match(pattern) and len(PurePosixPath(n).parts) == depth)

"""huggingface_hub against a hub on loopback: downloads go on where they broke, and what is damaged is refused."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hub import REVISION, Hub, serve, verl_row, write

REPOSITORY = "sail/Sanity-Test-R1D-1.5B"
FILE = "train/math_1460.parquet"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    # Some 20 MB: huggingface_hub keeps what it has by portions of 10 MiB.
    draw = random.Random(0)
    rows = [verl_row(f"{n}: {draw.randbytes(14_000).hex()} in \\boxed{{}}", str(n)) for n in range(1460)]
    return write(tmp_path_factory.mktemp("sanity") / "math_1460.parquet", rows).read_bytes()


def run(hub: Hub, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "drpo_verl.cli", "data", "sanity_r1d", "--out", str(folder / "out"), *arguments],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"),
             "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "", "NO_PROXY": "127.0.0.1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_broken_download_goes_on_and_a_finished_one_is_kept(content: bytes, tmp_path: Path) -> None:
    with serve(REPOSITORY, {FILE: content, "README.md": b"#"}) as hub:
        hub.break_after = 15_000_000
        first = run(hub, tmp_path)
        assert first.returncode == 0, first.stderr[-3000:]
        assert hub.ranges == ["bytes=10485760-"]
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert manifest["source"]["revision"] == REVISION and manifest["source"]["from"] is None
        assert list(manifest["source"]["files"]) == [FILE]
        assert pq.read_metadata(tmp_path / "out" / "train.parquet").num_rows == 1460
        assert "math: 1,460 rows read; 1,460 problems" in first.stdout

        assert run(hub, tmp_path).returncode == 0
        assert hub.served == {FILE: 2}  # the broken one and the rest of it


def test_what_is_damaged_or_changed_is_refused(content: bytes, tmp_path: Path) -> None:
    with serve(REPOSITORY, {FILE: content}) as hub:
        assert run(hub, tmp_path).returncode == 0
        (blob,) = (path for path in (tmp_path / "home").rglob("blobs/*") if path.is_file())
        blob.chmod(0o644)
        blob.write_bytes(content[:-1])
        damaged = run(hub, tmp_path)
        assert damaged.returncode == 1
        assert "is not what the hub has as train/math_1460.parquet" in damaged.stderr
        assert "Delete it and run this again." in damaged.stderr

        hub.files[FILE] = write(tmp_path / "new.parquet", [verl_row("1?", "1")] * 3).read_bytes()
        blob.unlink()
        changed = run(hub, tmp_path / "elsewhere", "--out", str(tmp_path / "out"))
        assert changed.returncode == 1 and "has changed since the manifest was written" in changed.stderr
        accepted = run(hub, tmp_path / "elsewhere", "--out", str(tmp_path / "out"), "--accept-changes")
        assert accepted.returncode == 0 and "3 rows read, 2 duplicates; 1 problems" in accepted.stdout


def test_a_hub_out_of_reach_says_what_to_do(tmp_path: Path) -> None:
    failed = run(Hub("http://127.0.0.1:9", {}), tmp_path)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert f"error: {REPOSITORY} can not be downloaded" in failed.stderr
    assert f"hf download {REPOSITORY} --repo-type dataset --revision main --local-dir COPY" in failed.stderr

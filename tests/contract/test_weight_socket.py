"""Two runs on one machine, each with a Ray cluster of its own, do not share the socket of their weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.runtime_context import RuntimeContext

from drpo_verl.adapters.weight_socket import unique_job


def test_no_two_clusters_share_the_socket_of_the_weights(tmp_path: Path) -> None:
    temporary = f"/tmp/dv-{os.getpid()}-socket"  # short: Ray's socket paths have a limit
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "VERL_PLATFORM": "cpu"}
    try:
        run = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("weight_socket_names.py")), str(tmp_path), temporary],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        for cluster in ("1", "2"):
            shutil.rmtree(temporary + cluster, ignore_errors=True)
    assert run.returncode == 0, run.stderr[-4000:]
    first, second = json.loads(run.stdout.splitlines()[-1])
    assert first["job"] == second["job"], "Ray numbers jobs over all clusters: then verl's own name is enough"
    (sender, receiver), (other_sender, other_receiver) = first["names"], second["names"]
    assert sender == receiver and other_sender == other_receiver
    assert sender != other_sender
    assert len(sender.removeprefix("ipc://").encode()) < 107


def test_a_ray_that_does_not_tell_its_session_tells_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(RuntimeContext.gcs_address, property)  # which every Ray that verl takes has

    def name_at(address: str) -> str:
        context = SimpleNamespace(get_job_id=lambda: "01000000", gcs_address=address)
        monkeypatch.setattr("ray.get_runtime_context", lambda: context)
        return unique_job()

    assert name_at("127.0.0.1:6379") == name_at("127.0.0.1:6379") != name_at("127.0.0.1:6380")

"""What a run does when a node of its Ray cluster is gone."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from faults import ENDLESS, Times, live, wait_for_end
from stack import MARK

E2E = Path(__file__).parents[1] / "e2e"
ON_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
}
# The trainer's rank on one node, vLLM on the other.
APART = (
    *ENDLESS, "run.stall_seconds=300",
    "trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.hybrid_engine=false",
    "trainer.v1.separate_async.parameter_sync_step=1", "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=shared_file",
    "actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=drpo_verl.cpu.checkpoint_engine",
    "+actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.shared_file.folder=${run.dir}/weights",
)  # fmt: skip


@dataclass(frozen=True)
class TwoNodes:
    """A Ray cluster of two nodes on this machine: what joins it needs these variables; its second node's raylet."""

    variables: dict[str, str]
    second_raylet: int


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[TwoNodes]:
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(16))
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), **ON_LOOPBACK}
    temporary = Path("/tmp") / f"dv-{os.getpid()}-nodes"  # short: Ray's socket paths have a limit
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | variables
    process = subprocess.Popen(
        [sys.executable, E2E / "ray_nodes.py", temporary, str(port)], cwd=tmp_path, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(tmp_path / "nodes.log").open("w"), text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, (tmp_path / "nodes.log").read_text()
        (second,) = [
            child.pid
            for child in psutil.Process(process.pid).children(recursive=True)
            if child.name() == "raylet" and f"{temporary}-2/" in " ".join(child.cmdline())
        ]
        yield TwoNodes(variables | {"RAY_ADDRESS": address}, second)
    finally:
        process.communicate(timeout=120)
        for folder in (temporary, f"{temporary}-2"):
            shutil.rmtree(folder, ignore_errors=True)


def test_the_raylet_of_the_second_node_is_killed(two_nodes: TwoNodes, tmp_path: Path, times: Times) -> None:
    folder = tmp_path / "apart"
    # The nodes' own processes have started without it.
    mark = f"++ray_kwargs.ray_init.runtime_env.env_vars.{MARK}={folder}"
    with live(folder, *APART, mark, variables=two_nodes.variables) as run:
        run.wait_for_steps(2)
        since = time.monotonic()
        os.kill(two_nodes.second_raylet, signal.SIGKILL)
        end = wait_for_end(run, since)
        assert "died: its node is gone" in end.line
        # Ray needs some seconds to see it, in which the trainer, on the other node, goes on.
        assert end.checkpoint is not None and end.checkpoint == run.latest_checkpoint
        times.note("the raylet of a node is killed, of two", end)

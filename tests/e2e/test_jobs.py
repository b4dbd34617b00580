"""Recipes submitted to a running Ray cluster of two nodes: followed, stopped, resumed, and spread over both nodes.

The run over both nodes is the one that shows what an asynchronous trainer's samples are, with Top-K.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from ray.job_submission import JobStatus, JobSubmissionClient
from stack import SHORT

from drpo_verl.losses.diagnostics import ABS_DIFF_EDGES
from drpo_verl.run_folder.steps import Step, read_steps

ROOT = Path(__file__).parents[2]
JOB_SECONDS = 900
DELTA = "trust_region/delta"
STALENESS = "training/off_policy/trajectory_staleness"
# Actors of the run over both nodes, by their class: the trainer's rank, the rollout's rank, and vLLM with Top-K.
TRAINER, ROLLOUT, SERVER = "WorkerDict", "CheckpointEngineWorker", "TopKServer"
# Two updates a rollout: in the second, tokens can be outside.
TWO_UPDATES = (
    *[override for override in SHORT if override.startswith(("data.", "prepare.", "trainer.val_before_train"))],
    "trainer.test_freq=-1", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
)  # fmt: skip


@dataclass(frozen=True)
class RayNodes:
    """A running cluster, and the environment of someone who may use it."""

    process: subprocess.Popen[str]
    dashboard: str
    token: str
    environment: dict[str, str]
    shared: Path

    @property
    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.dashboard, headers=self.headers)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def submit(self, *arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
        """``recipes/submit.sh``, from another folder than the checkout."""
        return subprocess.run(
            [ROOT / "recipes" / "submit.sh", *arguments, f"SHARED_DIR={self.shared}"],
            cwd=self.shared, env={name: value for name, value in self.environment.items() if name != without},
            capture_output=True, text=True, timeout=JOB_SECONDS, check=False,
        )  # fmt: skip

    def wait(self, job: str, *ends: JobStatus, seconds: float = JOB_SECONDS) -> JobStatus:
        deadline = time.monotonic() + seconds
        while (status := self.client.get_job_status(job)) not in ends and time.monotonic() < deadline:
            time.sleep(1)
        return status

    def actors(self) -> list[dict[str, Any]]:
        """Of all jobs, alive and dead."""
        reply = requests.get(f"{self.dashboard}/api/v0/actors?limit=1000&detail=1", headers=self.headers, timeout=60)
        reply.raise_for_status()
        return reply.json()["data"]["result"]["result"]

    def run(self, name: str) -> Path:
        return self.shared / "runs" / name

    def explain(self, job: str, name: str) -> str:
        """What a failed assertion shows."""
        log = self.run(name) / "train.log"
        return self.client.get_job_logs(job)[-3000:] + (log.read_text()[-6000:] if log.exists() else "")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    shared = tmp_path_factory.mktemp("shared")
    token = secrets.token_hex(16)
    token_file = shared / "token"
    token_file.write_text(token)
    temp_dir = Path("/tmp") / f"dv-{os.getpid()}-nodes"  # short: Ray's socket paths have a limit
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    dashboard = f"http://127.0.0.1:{port}"
    # As on a cluster, nothing of this checkout is on the nodes but what comes with a job, and the stack it runs on.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VERL_", "PYTHONPATH"))}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_API_SERVER_ADDRESS": dashboard,
        "AGENT_SECONDS": "600",  # a busy machine takes its time to start a cluster's agent
        "DRPO_VERL_CACHE": os.environ.get("DRPO_VERL_CACHE", str(Path.home() / ".cache" / "drpo-verl")),
    }
    on_loopback = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    with (shared / "nodes.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("ray_nodes.py"), temp_dir, str(port)],
            cwd=shared, env=environment | on_loopback, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None and process.stdout.readline(), (shared / "nodes.log").read_text()
            yield RayNodes(process, dashboard, token, environment, shared)
        finally:
            process.communicate(timeout=120)
            for folder in (temp_dir, f"{temp_dir}-2"):
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class StoppedAndResumed:
    """A run in two jobs."""

    folder: Path
    stopped_log: str
    resumed_log: str
    resumed: subprocess.CompletedProcess[str]
    status: JobStatus
    checkpoint: int
    delta: float

    @property
    def steps(self) -> tuple[list[Step], list[Step]]:
        """Of the first job, and of the second."""
        return read_steps(self.folder / "metrics.1.jsonl"), read_steps(self.folder / "metrics.jsonl")


@pytest.fixture(scope="module")
def stopped_and_resumed(nodes: RayNodes) -> StoppedAndResumed:
    command = ("cpu_tiny", "METHOD=drpo_adaptive", "RUN_NAME=adaptive", "RESUME_MODE=auto", "SAVE_FREQ=1", *TWO_UPDATES)
    folder = nodes.run("adaptive")
    submitted = nodes.submit(*command, "TOTAL_STEPS=800", "--no-wait", "--submission-id=first")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    latest = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    deadline = time.monotonic() + JOB_SECONDS
    while not latest.exists():
        status = nodes.client.get_job_status("first")
        assert status in (JobStatus.PENDING, JobStatus.RUNNING), nodes.explain("first", "adaptive")
        assert time.monotonic() < deadline, nodes.explain("first", "adaptive")
        time.sleep(1)
    nodes.client.stop_job("first")
    assert nodes.wait("first", JobStatus.STOPPED, seconds=60) == JobStatus.STOPPED
    stopped_log = nodes.client.get_job_logs("first")

    checkpoint = int(latest.read_text())
    state = folder / "checkpoints" / f"global_step_{checkpoint}" / "actor" / "trust_region.json"
    delta = json.loads(state.read_text())["delta"]
    resumed = nodes.submit(*command, f"TOTAL_STEPS={checkpoint + 2}", "--submission-id=second")
    status, resumed_log = nodes.client.get_job_status("second"), nodes.client.get_job_logs("second")
    return StoppedAndResumed(folder, stopped_log, resumed_log, resumed, status, checkpoint, delta)


def test_a_job_is_followed_to_its_end(stopped_and_resumed: StoppedAndResumed) -> None:
    resumed = stopped_and_resumed.resumed
    assert stopped_and_resumed.status == JobStatus.SUCCEEDED, resumed.stdout[-6000:] + resumed.stderr[-3000:]
    assert resumed.returncode == 0
    last = stopped_and_resumed.checkpoint + 2
    assert re.search(rf"^step +{last}/{last}  reward \d\.\d+  \|pi-mu\| .* s$", resumed.stdout, re.MULTILINE)
    assert "\x1b[" not in stopped_and_resumed.resumed_log  # nor a progress bar: not a terminal
    for line in ("joining the Ray cluster at", "metrics: ", "ray job stop second"):
        assert line in resumed.stdout + resumed.stderr
    assert (stopped_and_resumed.folder / "summary.json").exists()


def test_a_stopped_job_says_how_to_go_on_and_the_next_one_does(stopped_and_resumed: StoppedAndResumed) -> None:
    assert "trainer.resume_mode=auto" in stopped_and_resumed.stopped_log
    before, after = stopped_and_resumed.steps
    checkpoint = stopped_and_resumed.checkpoint
    assert [step.step for step in before][: checkpoint - 1] == list(range(1, checkpoint))
    assert [step.step for step in after] == [checkpoint + 1, checkpoint + 2]


def test_an_adaptive_threshold_goes_on_from_its_checkpoint(stopped_and_resumed: StoppedAndResumed) -> None:
    before, after = stopped_and_resumed.steps
    configured = before[0].metrics[DELTA]
    assert stopped_and_resumed.delta != pytest.approx(configured, rel=1e-3), "delta never moved: nothing is shown"
    # The checkpoint is written after the step has moved delta; the next step trains with it.
    assert after[0].metrics[DELTA] == pytest.approx(stopped_and_resumed.delta, rel=1e-5)


@dataclass(frozen=True)
class Apart:
    """A run whose samplers have a node of their own, get new weights after four updates and are a step ahead."""

    folder: Path
    nodes: dict[str, set[str]]
    """Those on which the actors of the run were, by the actors' class."""

    @property
    def steps(self) -> list[dict[str, float]]:
        """The metrics of its steps."""
        return [step.metrics for step in read_steps(self.folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def apart(nodes: RayNodes) -> Apart:
    submitted = nodes.submit(
        "dppo/qwen3_8b", "rehearsal=cpu", "staleness=separate_async", "METHOD=dppo_topk_tv", "RUN_NAME=apart",
        "--submission-id=apart",
        "+actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.shared_file.folder=${run.dir}/weights",
    )  # fmt: skip
    assert nodes.client.get_job_status("apart") == JobStatus.SUCCEEDED, nodes.explain("apart", "apart")
    assert submitted.returncode == 0
    where: dict[str, set[str]] = {}
    actors = nodes.actors()
    job = next(actor["job_id"] for actor in actors if actor["class_name"] == ROLLOUT)  # no other run has one
    for actor in actors:
        if actor["job_id"] == job:
            where.setdefault(actor["class_name"].rpartition(".")[2], set()).add(actor["node_id"])
    return Apart(nodes.run("apart"), where)


def test_trainer_and_rollout_are_on_different_nodes(apart: Apart) -> None:
    assert len(apart.steps) == 2
    where = apart.nodes
    assert where[ROLLOUT] == where[SERVER] and len(where[TRAINER]) == len(where[SERVER]) == 1, where
    assert where[TRAINER] != where[SERVER], where
    assert list((apart.folder / "weights").iterdir()) == []  # through which each weight sync went


def test_samples_of_an_asynchronous_trainer_have_top_k(apart: Apart) -> None:
    for metrics in apart.steps:
        partition, binary = (metrics[f"mismatch/{name}_mean"] for name in ("partition_divergence", "abs_prob_diff"))
        assert 0 < 0.99 * binary - 1e-3 <= partition < 0.5


def test_samples_of_an_asynchronous_trainer_are_stale(apart: Apart) -> None:
    last = apart.steps[-1]
    assert last[f"{STALENESS}/max"] >= 1
    assert last[f"{STALENESS}/min"] <= last[f"{STALENESS}/mean"] <= last[f"{STALENESS}/max"]


def test_an_asynchronous_trainer_tells_mismatch_and_drift(apart: Apart) -> None:
    # Each of its four updates between two weight syncs is a call of its own, of which the last one's metrics count.
    for metrics in apart.steps:
        mismatch, both, drift = (
            metrics[f"{prefix}/abs_prob_diff_max"] for prefix in ("inference_mismatch", "mismatch", "policy_drift")
        )
        assert 0 < min(mismatch, drift) <= both == max(mismatch, drift) <= 1
        # An average over the updates would be between the edges of bins.
        assert any(metrics["policy_drift/abs_prob_diff_p99"] == pytest.approx(edge) for edge in ABS_DIFF_EDGES)
    # After a weight sync the count begins anew.
    first, second = (metrics["inference_mismatch/abs_prob_diff_mean"] for metrics in apart.steps)
    assert first != second


def test_nothing_listens_beyond_loopback(nodes: RayNodes) -> None:
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in psutil.Process(nodes.process.pid).children(recursive=True)
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and listening <= {"127.0.0.1", "::1"}


def test_without_the_token_nothing_is_accepted(nodes: RayNodes) -> None:
    refused = nodes.submit("cpu_tiny", "--no-wait", "--submission-id=intruder", without="RAY_AUTH_MODE")
    assert refused.returncode != 0
    assert "intruder" not in {info.submission_id for info in nodes.client.list_jobs()}

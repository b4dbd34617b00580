"""What a run does when one of its processes is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
from faults import ENDLESS, Chain, Times, live, wait_for_end


def test_the_driver(chain: Chain, times: Times) -> None:
    with chain.part() as run:
        since = time.monotonic()
        run.process.kill()
        end = wait_for_end(run, since)
        assert end.returncode == -signal.SIGKILL
        assert "drpo_verl.train" in end.line
        chain.ended(end)
        times.note("the driver (`drpo_verl.train`) is killed", end)


def test_the_vllm_server(chain: Chain, times: Times) -> None:
    with chain.part() as run:
        (server,) = run.pids("ray::vLLMHttpServer")
        since = time.monotonic()
        os.kill(server, signal.SIGKILL)
        end = wait_for_end(run, since)
        assert f"the vLLM server (vLLMHttpServer, process {server}) died: " in end.line
        chain.ended(end)
        times.note("the vLLM server is killed", end)


def test_the_vllm_engine(chain: Chain, times: Times) -> None:
    with chain.part() as run:
        (server,) = run.pids("ray::vLLMHttpServer")
        (engine,) = [
            child for child in psutil.Process(server).children() if "multiprocessing.spawn" in " ".join(child.cmdline())
        ]
        since = time.monotonic()
        engine.kill()
        end = wait_for_end(run, since)
        assert "EngineDeadError" in end.line or "vLLMHttpServer" in end.line
        chain.ended(end)
        times.note("vLLM's engine is killed, and not its server", end)


def test_the_only_rank(chain: Chain, times: Times) -> None:
    with chain.part() as run:
        (rank,) = run.pids("ray::WorkerDict")
        since = time.monotonic()
        os.kill(rank, signal.SIGKILL)
        end = wait_for_end(run, since)
        assert f"a trainer's rank (WorkerDict 0:0, process {rank}) died: " in end.line
        chain.ended(end)
        times.note("the FSDP rank is killed, of one", end)


def test_one_rank_of_two(tmp_path: Path, times: Times) -> None:
    with live(tmp_path / "ranks", *ENDLESS, "trainer.n_gpus_per_node=2") as run:
        run.wait_for_steps(2)
        _, rank = run.pids("ray::WorkerDict")
        since = time.monotonic()
        os.kill(rank, signal.SIGKILL)
        end = wait_for_end(run, since)
        assert f"process {rank}) died: " in end.line and "a trainer's rank (WorkerDict 0:" in end.line
        assert end.checkpoint == 2
        times.note("an FSDP rank is killed, of two", end)

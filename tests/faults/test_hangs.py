"""What a run does when one of its processes hangs."""

from __future__ import annotations

import os
import re
import signal
import time

from faults import END_SECONDS, STALL_SECONDS, STALLS, Chain, Times, wait_for_end

from drpo_verl.launch.console import EXIT_STALLED


def test_the_vllm_server(chain: Chain, times: Times) -> None:
    with chain.part(STALLS) as run:
        (server,) = run.pids("ray::vLLMHttpServer")
        since = time.monotonic()
        os.kill(server, signal.SIGSTOP)
        end = wait_for_end(run, since, limit=STALL_SECONDS + END_SECONDS)
        assert end.returncode == EXIT_STALLED
        assert f"run.stall_seconds={STALL_SECONDS}" in end.line
        assert re.search(rf"process {server} \(ray::vLLMHttpServer[^)]*\) is stopped by a signal", end.line)
        chain.ended(end)
        times.note(f"the vLLM server hangs (`SIGSTOP`), with `run.stall_seconds={STALL_SECONDS}`", end)

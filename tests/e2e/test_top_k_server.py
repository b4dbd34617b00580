"""verl interrupts its vLLM server: answers that are cut off have the Top-K of their tokens, empty ones have none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def test_answers_to_interrupted_requests(tmp_path: Path) -> None:
    ray_folder = Path("/tmp") / f"dv-top-k-{os.getpid()}"  # short: Ray's socket paths have a limit
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    script = Path(__file__).with_name("top_k_server.py")
    try:
        run = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "model"), str(ray_folder)],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    assert run.returncode == 0, run.stderr[-4000:]
    answers = json.loads(next(line for line in reversed(run.stdout.splitlines()) if line.startswith("{")))

    whole = {"tokens": 4, "log_probs": 4, "stop_reason": "completed", "rows": [3 + 4, 3 + 4]}
    assert answers["before"] == answers["after"] == whole
    cut_off = answers["sampled"]
    assert 0 < cut_off["tokens"] < 120 and cut_off["stop_reason"] == "aborted"
    assert cut_off["log_probs"] == cut_off["tokens"] and cut_off["rows"] == [3 + cut_off["tokens"]] * 2
    # In vLLM's queue, and not let into it: neither has a token, a log-probability, or rows.
    for name in ("waiting", "rejected"):
        answer = answers[name]
        assert (answer["tokens"], answer["stop_reason"], answer["rows"]) == (0, "aborted", []), name
        assert not answer["log_probs"], name
    assert answers["kept"] == 0, "of requests that have ended"

"""Work in a process of its own: the answer comes back, and neither the process nor a file of it outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drpo_verl.engine.process import run
from drpo_verl.errors import UserError
from drpo_verl.launch.processes import title

FOLDER = str(Path(__file__).parent)
PATH = os.pathsep.join([FOLDER, str(Path(__file__).parents[3])])
PARENT = """
import sys
from pathlib import Path
from drpo_verl.engine.process import run
folder = Path(sys.argv[1])
run("sleeper", folder / "started", 1000.0, task="sleeping", log=folder / "log", variables={})
"""


def test_the_answer_comes_back(tmp_path: Path) -> None:
    variables = {"PYTHONPATH": PATH}
    answer = run("sleeper", tmp_path / "started", 0.0, task="sleeping", log=tmp_path / "log", variables=variables)
    assert answer == "slept"


def test_an_error_of_vllms_engine_is_named_where_vllm_says_only_that_there_is_one(tmp_path: Path) -> None:
    # As they were in the log of a probe on an H200 that other work had filled.
    output = """(EngineCore pid=44) ERROR 11-27 11:59:38 [core.py:1231] EngineCore failed to start.
(EngineCore pid=44) Traceback (most recent call last):
(EngineCore pid=44)     raise ValueError(
(EngineCore pid=44) ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."""
    reported = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    arguments = (tmp_path / "started", 0.0, (output, reported))
    with pytest.raises(UserError) as raised:
        run("sleeper", *arguments, task="MODEL", log=tmp_path / "log", variables={"PYTHONPATH": PATH})
    assert str(raised.value) == (
        "MODEL: vLLM's engine did not start: ValueError: No available memory for the cache blocks. "
        f"Try increasing `gpu_memory_utilization`. The log is in {tmp_path / 'log'}."
    )


def test_it_ends_with_the_process_that_waits_for_it_and_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    variables = {"PYTHONPATH": PATH, "TMPDIR": str(temporary)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path], env={**os.environ, **variables})
    started = tmp_path / "started"
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    child = int(started.read_text())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while title(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert title(child) == ""
    assert list(temporary.iterdir()) == []

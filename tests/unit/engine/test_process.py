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


REPORTED = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        # Shortened from the log of a probe on an H200 whose memory other probes had taken.
        ("(EngineCore pid=4404) ERROR 11-27 11:59:38 [core.py:1231] ValueError: what is logged.\n"
         "(EngineCore pid=4404) Traceback (most recent call last):\n"
         "(EngineCore pid=4404)     raise ValueError(\n"
         "(EngineCore pid=4404) ValueError: No available memory for the cache blocks.\n",
         "vLLM's engine did not start: ValueError: No available memory for the cache blocks."),
        ("(EngineCore pid=4404) torch.OutOfMemoryError: CUDA out of memory.\n",
         "vLLM's engine did not start: torch.OutOfMemoryError: CUDA out of memory."),
        ("(Worker_TP0 pid=7) ValueError: of a worker.\n"
         "(EngineCore pid=6) Exception: WorkerProc initialization failed in a background process.\n",
         "vLLM's engine did not start: ValueError: of a worker."),
        ("nothing of use\n", f"RuntimeError: {REPORTED}"),
    ],
)  # fmt: skip
def test_an_error_of_vllms_engine_is_named_where_vllm_says_only_that_there_is_one(
    output: str, message: str, tmp_path: Path
) -> None:
    arguments = (tmp_path / "started", 0.0, (output, REPORTED))
    with pytest.raises(UserError) as raised:
        run("sleeper", *arguments, task="MODEL", log=tmp_path / "log", variables={"PYTHONPATH": PATH})
    assert str(raised.value) == f"MODEL: {message} The log is in {tmp_path / 'log'}."


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

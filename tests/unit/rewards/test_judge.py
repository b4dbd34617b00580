"""The judge: from any caller, within its limits, and never a verdict when it can not run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import psutil
import pytest

from drpo_verl.rewards import judge
from drpo_verl.rewards.judge import AnswerError, Judge, JudgeError
from drpo_verl.rewards.mathematics import score

# Without a `__main__` guard: a spawned process that ran this again would write the line again, and fail to start.
UNGUARDED = r"""
import threading
from drpo_verl.rewards.reward import compute_score
print("started", flush=True)
def ask(answer):
    print(compute_score("math_dapo", rf"\boxed{{\frac{{{answer}}}{{4}}}}", r"\frac{1}{2}"), flush=True)
thread = threading.Thread(target=ask, args=[2])
thread.start()
thread.join()
ask(3)
"""


@pytest.mark.parametrize("how", ["script", "-c", "stdin", "-m"])
def test_any_caller_gets_verdicts(how: str, tmp_path: Path) -> None:
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    arguments = {"script": ["unguarded.py"], "-c": ["-c", UNGUARDED], "stdin": ["-"], "-m": ["-m", "unguarded"]}[how]
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path, input=UNGUARDED, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout.split(), run.stderr) == (0, ["started", "1.0", "0.0"], "")


def test_other_processes_of_the_caller_still_find_its_main_module(tmp_path: Path) -> None:
    script = tmp_path / "guarded.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from drpo_verl.rewards import judge\n"
        "def work():\n"
        "    sys.exit(7)\n"
        "if __name__ == '__main__':\n"
        "    judge.shared().ask(abs, -1)\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    process.start()\n"
        "    process.join()\n"
        "    print(process.exitcode)\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout == "7\n"


# IPython puts a bare module in the place of the main one, and calls functions while an event loop runs.
NOTEBOOK = """
import asyncio, sys, types
sys.modules["__main__"] = notebook = types.ModuleType("__main__")
del notebook.__spec__
async def cell():
    exec(code, notebook.__dict__)
asyncio.run(cell())
"""


def test_a_notebook_gets_verdicts() -> None:
    program = f"code = {UNGUARDED!r}\n{NOTEBOOK}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout.split(), run.stderr) == (0, ["started", "1.0", "0.0"], "")


@pytest.fixture(scope="module")
def impatient() -> Iterator[Judge]:
    impatient = Judge(processes=1, seconds=2)
    yield impatient
    impatient.close()


def test_what_does_not_end_is_killed(impatient: Judge) -> None:
    start = time.perf_counter()
    with pytest.raises(AnswerError, match="pow took longer than 2 s"):
        impatient.ask(pow, 7, 10**10)  # one instruction, which no signal handler of Python's can interrupt
    assert impatient.ask(abs, -2) == 2
    assert time.perf_counter() - start < 50


def test_a_process_that_gets_no_time_is_no_verdict() -> None:
    starved = Judge(processes=1, seconds=1, patience=3)
    try:
        starved.ask(time.sleep, 2)  # longer than an answer may compute: the machine is busy
        with pytest.raises(JudgeError, match=r"less than 1 s of processor time in 3 s, twice.*reward\.num_workers"):
            starved.ask(time.sleep, 1000)
    finally:
        starved.close()


def test_what_crashes_is_replaced(impatient: Judge) -> None:
    with pytest.raises(AnswerError, match="exit code 3"):
        impatient.ask(os._exit, 3)
    with pytest.raises(AnswerError, match=f"exit code -{int(signal.SIGSEGV)}"):
        impatient.ask(signal.raise_signal, signal.SIGSEGV)
    with pytest.raises(AnswerError, match="SystemExit"):
        impatient.ask(sys.exit, 1)
    with pytest.raises(AnswerError, match="ZeroDivisionError"):
        impatient.ask(divmod, 1, 0)
    assert impatient.ask(abs, -3) == 3


def test_a_process_ended_from_outside_is_no_verdict(
    impatient: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "victim.py").write_text(
        "import os, signal\n"
        "def die(times, folder):\n"
        "    if len(os.listdir(folder)) < times:\n"
        "        open(os.path.join(folder, str(os.getpid())), 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    impatient.close()  # so that its processes see the folder
    die = import_module("victim").die
    for name, times in (("once", 1), ("always", 100)):
        (tmp_path / name).mkdir()
        if times == 1:
            assert impatient.ask(die, times, str(tmp_path / name)) == 7
        else:
            with pytest.raises(JudgeError, match="ended with signal 9, twice"):
                impatient.ask(die, times, str(tmp_path / name))
    assert impatient.ask(abs, -3) == 3


def test_memory_is_limited(impatient: Judge) -> None:
    assert impatient.ask(len, impatient.ask(bytes, 1 << 20)) == 1 << 20
    with pytest.raises(AnswerError, match="MemoryError"):
        impatient.ask(bytearray, 5 << 30)


def test_processes_that_somebody_kills_are_started_again(impatient: Judge) -> None:
    for pid in (impatient.ask(os.getpid), impatient.ask(os.getpid)):
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
    assert impatient.ask(abs, -4) == 4


def test_a_forked_process_has_a_judge_of_its_own() -> None:
    assert judge.shared().ask(abs, -5) == 5
    child = os.fork()
    if child == 0:
        os._exit(judge.shared().ask(abs, -6))
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(ended[1]) == 6


def test_one_that_can_not_run_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Judge(processes=1)
    monkeypatch.setattr(judge, "shared", lambda: nothing)
    monkeypatch.setattr(judge, "_prepare", sys.exit)  # in the process, before its first question
    with pytest.raises(JudgeError, match="the processes that compare answers do not run"):
        score(r"\boxed{\frac{20}{40}}", r"\frac{10}{20}")


def test_an_executable_that_is_none_is_an_error() -> None:
    program = "import multiprocessing; multiprocessing.set_executable('/bin/false')\n" + UNGUARDED
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1 and run.stdout == "started\n"
    assert run.stderr.count("JudgeError: the processes that compare answers do not run") == 2  # in thread and main


def test_many_threads_ask_at_once() -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda number=number: answers.append(judge.shared().ask(abs, -number)))
        for number in range(32)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == list(range(32))

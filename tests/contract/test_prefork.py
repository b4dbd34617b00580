"""Processes forked from one that has imported verl and vLLM are what a Python of their own would be."""

from __future__ import annotations

import os
import select
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

from drpo_verl.cpu.prefork import fork_server
from drpo_verl.cpu.prefork_client import LENGTH, SOCKET


@dataclass
class Server:
    """A server and the process that it ends with, in the place of a raylet."""

    command: str
    log: Path
    raylet: subprocess.Popen[bytes]

    def start(self, *arguments: str, **kwargs: object) -> subprocess.Popen[str]:
        environment = os.environ | {"RAY_RAYLET_PID": str(self.raylet.pid), "VERL_PLATFORM": "cpu"}
        return subprocess.Popen(
            [self.command, *arguments],
            **{"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs},
        )

    def output(self, *arguments: str, **kwargs: object) -> str:
        process = self.start(*arguments, **kwargs)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors + self.log.read_text()[-4000:]
        return out.strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("prefork") / "log.txt"
    raylet = subprocess.Popen(["sleep", "1000"])
    with fork_server(log) as command:
        yield Server(command, log, raylet)
        if raylet.poll() is None:
            raylet.kill()
            raylet.wait()


SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"


def _is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_everything_is_imported_in_it(server: Server) -> None:
    code = "import sys; print(*(name in sys.modules for name in ('verl.trainer.main_ppo', 'vllm', 'ray')))"
    assert server.output("-c", code) == "True True True"
    assert "was not imported in advance" not in server.log.read_text()


def test_a_single_thread_is_forked(server: Server) -> None:
    # Of the server, which is the parent; pyarrow's allocator has a thread too, and handlers for forks.
    code = (
        "import os; tasks = f'/proc/{os.getppid()}/task'; "
        "print(*(open(f'{tasks}/{task}/comm').read().strip() for task in os.listdir(tasks)), sep='|')"
    )
    threads = server.output("-c", code).split("|")
    assert len([name for name in threads if name != "jemalloc_bg_thd"]) == 1, threads


def test_a_script_gets_its_arguments_environment_folder_and_exit_code(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "a script.py"
    script.write_text(
        "import os, sys\n"
        "assert __name__ == '__main__' and __file__ == sys.argv[0]\n"
        "print(sys.argv[1:], os.environ['OF_ITS_OWN'], 'HOME' in os.environ, os.getcwd(), sys.path[0])\n"
        "print('to stderr', file=sys.stderr)\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    process = server.start(
        str(script), "7", "", "a b", cwd=tmp_path,
        env={"OF_ITS_OWN": "é=1\n2", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 7 and errors == "to stderr\n"
    assert out == f"['7', '', 'a b'] é=1\n2 False {tmp_path} {tmp_path}\n"


def test_it_has_the_files_of_who_asked_and_no_others(server: Server) -> None:
    reading, writing = os.pipe()
    try:
        code = (
            f"import os; os.write({writing}, b'through the pipe'); folder = '/proc/self/fd/'; "
            "print(*(name for name in os.listdir(folder) if os.path.exists(folder + name)))"
        )
        found = server.output("-B", "-c", code, pass_fds=[writing])
        assert os.read(reading, 100) == b"through the pipe"
        assert set(map(int, found.split())) == {0, 1, 2, writing}
    finally:
        os.close(reading)
        os.close(writing)


def test_a_request_that_breaks_off_leaves_no_file_open(server: Server) -> None:
    server.output("-c", "pass")
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(Path(server.command).with_name(SOCKET)))
        socket.send_fds(asking, [LENGTH.pack(1000)], [writing])
        asking.sendall(b"less than that")
    os.close(writing)
    with os.fdopen(reading, "rb") as end:
        assert select.select([end], [], [], 20)[0] and end.read() == b""  # its end, once nobody can write to it
    assert server.output("-c", "print('still there')") == "still there"


def test_signals_reach_it_and_are_told(server: Server) -> None:
    process = server.start("-c", SLEEP)
    forked = int(process.stdout.readline())
    assert forked != process.pid
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM and _is_gone(forked)


def test_one_that_is_killed_is_told_of_so(server: Server) -> None:
    process = server.start("-c", SLEEP)
    os.kill(int(process.stdout.readline()), signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL


def test_it_survives_a_process_and_who_waits_for_it_ending_at_once(server: Server) -> None:
    process = server.start("-c", SLEEP)
    forked = int(process.stdout.readline())
    parent = psutil.Process(forked).ppid()
    os.kill(parent, signal.SIGSTOP)  # so that it is told of both ends in one go
    os.kill(forked, signal.SIGKILL)
    process.kill()
    process.wait(20)
    os.kill(parent, signal.SIGCONT)
    assert server.output("-c", "import os; print(os.getppid())") == str(parent)


def _importing_nothing(folder: Path) -> dict[str, str]:
    """An environment in which a server has nothing to import, and so is there at once."""
    for name in ("ray", "verl", "vllm"):
        (folder / f"{name}.py").write_text("raise ImportError")
    return os.environ | {"PYTHONPATH": str(folder)}


def test_a_process_ends_with_its_server(tmp_path: Path) -> None:
    environment = _importing_nothing(tmp_path) | {"RAY_RAYLET_PID": str(os.getpid())}
    with fork_server(tmp_path / "log.txt") as command:
        process = subprocess.Popen([command, "-c", SLEEP], env=environment, stdout=subprocess.PIPE, text=True)
        forked = int(process.stdout.readline())
        os.kill(psutil.Process(forked).ppid(), signal.SIGKILL)
        assert process.wait(20) == 1 and _is_gone(forked)


def test_it_is_killed_with_who_waits_for_it(server: Server) -> None:
    process = server.start("-c", SLEEP)
    forked = int(process.stdout.readline())
    process.kill()
    process.wait(20)
    assert _is_gone(forked)


def test_two_draw_different_random_numbers(server: Server) -> None:
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    assert len({*server.output("-c", code).split(), *server.output("-c", code).split()}) == 4


def test_what_it_spawns_is_forked_too(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "spawns.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "def work(queue):\n"
        "    queue.put('vllm' in sys.modules)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.Queue()\n"
        "    process = context.Process(target=work, args=(queue,))\n"
        "    process.start()\n"
        "    print(queue.get())\n"
        "    process.join()\n"
        "    print(process.exitcode)\n"
    )
    assert server.output(str(script)).split() == ["True", "0"]


def test_options_of_the_interpreter_get_a_process_of_their_own(server: Server) -> None:
    assert server.output("-m", "platform")
    assert server.output("-X", "utf8", "-c", "import sys; print('vllm' in sys.modules)") == "False"


def test_it_ends_with_its_raylet_and_a_plain_python_stands_in(server: Server) -> None:
    process = server.start("-c", SLEEP)
    forked = int(process.stdout.readline())
    server.raylet.kill()
    server.raylet.wait()
    process.wait(20)
    assert _is_gone(forked)
    deadline = time.monotonic() + 20
    while Path(server.command).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(server.command).parent.exists()


def test_without_a_server_that_works_it_is_a_plain_python(tmp_path: Path) -> None:
    # No process has this number: the server can not start.
    environment = _importing_nothing(tmp_path) | {"RAY_RAYLET_PID": str(2**22 + 1)}
    with fork_server(tmp_path / "log.txt") as command:
        for _ in range(2):  # who has started it, and who finds it gone
            done = subprocess.run(
                [command, "-c", "import sys; print(sys.executable)"],
                env=environment, capture_output=True, text=True, check=True, timeout=120,
            )  # fmt: skip
            assert done.stdout.strip() == sys.executable

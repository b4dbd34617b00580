"""A fork server: the processes of a run are forked from one that has imported verl and vLLM already.

A run has about ten processes, which verl and Ray start one after the other, and each of them imports verl, torch and
most of them vLLM: ten seconds of a CPU each, most of the time until a small run is ready. Forked, they start at once,
and share the memory of what they have imported.

Ray starts a worker by the command of its runtime environment (``py_executable``), and multiprocessing, by which vLLM
starts its engine, by an executable that can be set: both are ``prefork_client.py``, which hands arguments, environment
and open files to the server. Without a server it becomes an ordinary Python, so that nothing depends on it.

The server runs a single thread, as it must to be forked safely (pyarrow's allocator has one more, and its own handlers
for forks), and ends with the raylet whose workers it forks.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import logging
import multiprocessing
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from drpo_verl.cpu import prefork_client
from drpo_verl.cpu.prefork_client import COMMAND, LENGTH, STATUS, received

# What the processes of a run import; vLLM's server and engine last, without which the others are worth having.
_MODULES = (
    "ray._private.workers.default_worker",
    "verl.trainer.main_ppo",
    "verl.trainer.ppo.v1.trainer_sync",
    "verl.workers.engine_workers",
    "verl.workers.engine.fsdp.transformer_impl",
    "verl.experimental.agent_loop.agent_loop",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
)
_MOST_FILES = 250  # that a message over a socket can carry

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def fork_server(log: Path) -> Iterator[str]:
    """Yields an executable that stands for a Python, the first run of which starts the server.

    A Python itself, where temporary files can not be executed.

    Args:
        log: where the server's output goes, after what is there.
    """
    folder = Path(tempfile.mkdtemp(prefix="drpo-verl-"))  # for this user only
    command = folder / COMMAND
    client = shlex.join([sys.executable, "-I", "-S", prefork_client.__file__, str(folder), str(log.absolute())])
    command.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    command.chmod(0o700)
    try:
        yield str(command) if os.access(command, os.X_OK) else sys.executable
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Request:
    """What a process is to be."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    niceness: int
    blocked: list[int]
    files: dict[int, int]
    """By their numbers in the process that asks, those here."""

    @classmethod
    def receive(cls, connection: socket.socket, files: contextlib.ExitStack) -> _Request:
        """Read it from a connection; ``files`` closes what has come with it."""
        head, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, _MOST_FILES)
        for descriptor in descriptors:
            files.callback(os.close, descriptor)
        (length,) = LENGTH.unpack(head + received(connection, LENGTH.size - len(head)))
        inherited = json.loads(received(connection, length))
        return cls(**inherited | {"files": dict(zip(inherited["files"], descriptors, strict=True))})


class _Server:
    """Forks a process for each connection, and tells it how that one ended.

    Args:
        listener: where requests come in.
        owner: a descriptor that is readable when the process with which it ends is gone.
    """

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._owner = owner
        self._selector.register(self._owner, selectors.EVENT_READ)
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """By the descriptor that tells of its end: the child, and who waits for it."""

    def serve(self) -> _Request | None:
        """Returns in each forked process, with what it is to be; and here, with None, when the owner is gone."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    request = self._accept()
                    if request is not None:
                        return request
                elif key.data is None:
                    for child, _ in self._children.values():
                        os.kill(child, signal.SIGKILL)
                        os.waitpid(child, 0)
                    return None
                elif isinstance(key.fileobj, int):
                    self._ended(key.fileobj)
                elif any(connection is key.fileobj for _, connection in self._children.values()):
                    os.kill(key.data, signal.SIGKILL)  # who waits for it has been killed
                    self._selector.unregister(key.fileobj)

    def _accept(self) -> _Request | None:
        connection, _ = self._listener.accept()
        with contextlib.ExitStack() as files:
            try:
                request = _Request.receive(connection, files)
                child = os.fork()
            except (OSError, ValueError) as error:  # who asked runs a Python of its own
                logger.warning("a process was not forked: %s", error)
                connection.close()
                return None
            if child == 0:
                files.pop_all()  # they are its own
                self._forget(connection)
                return request
        with contextlib.suppress(OSError):
            connection.sendall(LENGTH.pack(child))
        ended = os.pidfd_open(child)
        self._children[ended] = (child, connection)
        self._selector.register(ended, selectors.EVENT_READ, child)
        self._selector.register(connection, selectors.EVENT_READ, child)
        return None

    def _ended(self, descriptor: int) -> None:
        child, connection = self._children.pop(descriptor)
        _, status = os.waitpid(child, 0)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.sendall(STATUS.pack(status))
        connection.close()

    def _forget(self, connection: socket.socket) -> None:
        """In a forked process: none of it is its own."""
        os.close(self._owner)
        for descriptor, (_, other) in self._children.items():
            os.close(descriptor)
            other.close()
        self._selector.close()
        self._listener.close()
        connection.close()


def _become(request: _Request, command: str) -> None:
    """Run what the process is to be, as ``python ARGUMENT...`` would."""
    # Aside first: a file here may have the number of another one there.
    above = max(request.files, default=2) + 1
    aside = {number: fcntl.fcntl(here, fcntl.F_DUPFD, above) for number, here in request.files.items()}
    for descriptor in request.files.values():
        os.close(descriptor)
    for number, descriptor in aside.items():
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)
    os.setpgid(0, 0)  # who kills its process group kills none of its siblings
    os.chdir(request.folder)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, request.niceness)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked)
    os.environ.clear()
    os.environ.update(request.environment)
    multiprocessing.set_executable(command)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # or it would draw what its siblings draw; Python's own is seeded anew
    script, *_ = sys.argv = request.arguments
    if script == "-c":
        code = sys.argv.pop(1)
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(code, "<string>", "exec", dont_inherit=True), vars(main))
    else:
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")


def _main(listener: socket.socket, folder: Path) -> None:
    owner = os.pidfd_open(int(os.environ["RAY_RAYLET_PID"]))
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the current folder, which is the server's alone
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:
            # Whoever needs it imports it again, and says so.
            logger.warning("%s was not imported in advance: %s", module, error)
    gc.collect()
    gc.freeze()  # the collector leaves shared memory alone
    sys.stdout.flush()  # or each process would print it once more
    sys.stderr.flush()
    request = _Server(listener, owner).serve()
    if request is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _become(request, str(folder / COMMAND))


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))

"""A fork server: the processes of a run are forked from one that has imported verl and vLLM already.

A run has about ten processes, which verl and Ray start one after the other. Each of them imports verl and torch, and
most of them vLLM, which takes ten seconds of a CPU: most of the time until a small run is ready. Forked processes start
at once, and share the memory of what was imported.

Ray starts a worker by a command in its runtime environment (``py_executable``), and multiprocessing, which starts
vLLM's engine, has an executable that can be set. Both are set to ``prefork_client.py``, which hands its arguments,
environment and open files to the server. Without a server it becomes an ordinary Python, so that nothing depends on it.

The server has a single thread, since only then is it safe to fork (pyarrow's allocator adds one, with handlers of its
own for forks), and it ends with the raylet whose workers it forks.
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
from drpo_verl.cpu.prefork_client import COMMAND, LENGTH, STATUS, receive_exactly

# What the processes of a run import; vLLM's server and engine come last, since the others are useful without them.
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
_MAX_FILES = 250  # one message over a socket carries no more

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def fork_server(log: Path) -> Iterator[str]:
    """Yield an executable to use as a Python, the first start of which starts the server, with its output in ``log``.

    Where temporary files can not be executed, it is Python itself.
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
    """What a client asks to have forked.

    Attributes:
        arguments: of the Python that the process stands for.
        environment: its environment variables.
        folder: its working directory.
        niceness: its scheduling priority.
        blocked: numbers of the signals that it blocks.
        files: the descriptors of its open files in this process, by their numbers in the client.
    """

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    niceness: int
    blocked: list[int]
    files: dict[int, int]

    @classmethod
    def receive(cls, connection: socket.socket, files: contextlib.ExitStack) -> _Request:
        """Read a request from a connection; ``files`` closes the files that come with it."""
        head, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, _MAX_FILES)
        for descriptor in descriptors:
            files.callback(os.close, descriptor)
        (length,) = LENGTH.unpack(head + receive_exactly(connection, LENGTH.size - len(head)))
        fields = json.loads(receive_exactly(connection, length))
        return cls(**fields | {"files": dict(zip(fields["files"], descriptors, strict=True))})


class _Server:
    """Forks a process for each client that connects, and tells the client how the process ended.

    Args:
        listener: the socket to which clients connect.
        owner: a descriptor that becomes readable when the process is gone with which the server ends.
    """

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._owner = owner
        self._selector.register(self._owner, selectors.EVENT_READ)
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """The forked process and the connection to its client, by the descriptor that tells of the process's end."""

    def serve(self) -> _Request | None:
        """Serve until the owner is gone, and then return None; in each forked process, return its request."""
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
                    self._report_end(key.fileobj)
                elif any(connection is key.fileobj for _, connection in self._children.values()):
                    os.kill(key.data, signal.SIGKILL)  # its client has been killed
                    self._selector.unregister(key.fileobj)

    def _accept(self) -> _Request | None:
        connection, _ = self._listener.accept()
        with contextlib.ExitStack() as files:
            try:
                request = _Request.receive(connection, files)
                child = os.fork()
            except (OSError, ValueError) as error:  # the client becomes a Python of its own
                logger.warning("a process was not forked: %s", error)
                connection.close()
                return None
            if child == 0:
                files.pop_all()  # the forked process keeps them
                self._close_in_child(connection)
                return request
        with contextlib.suppress(OSError):
            connection.sendall(LENGTH.pack(child))
        end = os.pidfd_open(child)
        self._children[end] = (child, connection)
        self._selector.register(end, selectors.EVENT_READ, child)
        self._selector.register(connection, selectors.EVENT_READ, child)
        return None

    def _report_end(self, descriptor: int) -> None:
        child, connection = self._children.pop(descriptor)
        _, status = os.waitpid(child, 0)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.sendall(STATUS.pack(status))
        connection.close()

    def _close_in_child(self, connection: socket.socket) -> None:
        # A forked process must not hold on to the server's sockets and descriptors.
        os.close(self._owner)
        for descriptor, (_, other) in self._children.items():
            os.close(descriptor)
            other.close()
        self._selector.close()
        self._listener.close()
        connection.close()


def _run(request: _Request, command: str) -> None:
    """Run in a forked process what ``python ARGUMENT...`` would run."""
    # To high numbers first: a file may have a number here that another file has in the client.
    lowest = max(request.files, default=2) + 1
    moved = {number: fcntl.fcntl(here, fcntl.F_DUPFD, lowest) for number, here in request.files.items()}
    for descriptor in request.files.values():
        os.close(descriptor)
    for number, descriptor in moved.items():
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)
    os.setpgid(0, 0)  # so that killing its process group kills no other process of the server
    os.chdir(request.folder)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, request.niceness)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked)
    os.environ.clear()
    os.environ.update(request.environment)
    multiprocessing.set_executable(command)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else all would draw the same numbers; Python's own generator is reseeded
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
        del sys.path[0]  # the server's own working directory
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:
            # The process that needs it imports it again, and reports the error.
            logger.warning("%s was not imported in advance: %s", module, error)
    gc.collect()
    gc.freeze()  # the collector does not touch memory that is shared
    sys.stdout.flush()  # else each forked process would print it once more
    sys.stderr.flush()
    request = _Server(listener, owner).serve()
    if request is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _run(request, str(folder / COMMAND))


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))

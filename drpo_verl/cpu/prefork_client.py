"""The client of the fork server, started in the place of a Python; without site-packages, so that it starts at once.

Usage: python -I -S prefork_client.py FOLDER LOG ARGUMENT...

The arguments are those of a Python. The client hands what it has inherited (environment, working directory, niceness,
blocked signals, files) to a process that the server forks, passes signals on to it, and ends when and as it ends.

The first client starts the server, in its own environment: Ray's C++ reads its settings, the job and the raylet from
the environment when it is loaded, and they are the same for all workers of a run. Without a server, or with arguments
that it does not know, the client becomes an ordinary Python.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import sys

LENGTH = struct.Struct("!Q")
STATUS = struct.Struct("!i")
SOCKET, COMMAND = "socket", "python"
FROM_ENVIRONMENT = ("-B", "-s")
"""Options that multiprocessing passes on where an environment variable has set them, as it has for the server."""


def main(folder: str, log: str, arguments: list[str]) -> int:
    """Have the arguments run in a forked process, and return its exit code."""
    while arguments and arguments[0] in FROM_ENVIRONMENT:
        arguments = arguments[1:]
    try:
        files = open_files()
        server = connect(folder, log, arguments)
        pid = ask(server, arguments, files)
    except OSError:
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: send_signal(pid, number))
    for descriptor in files:
        if descriptor > 2:
            os.close(descriptor)  # else pipes of the forked process would stay open after it
    try:
        (status,) = STATUS.unpack(receive_exactly(server, STATUS.size))
    except ConnectionError:  # without the server, nobody learns how the process ends
        send_signal(pid, signal.SIGKILL)
        return 1
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:  # which has no handler
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def ask(server: socket.socket, arguments: list[str], files: list[int]) -> int:
    """Ask the server for a forked process, and return its process id.

    Raises:
        ConnectionError: the server can not fork it.
    """
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "files": files,
    }
    body = json.dumps(request).encode()
    socket.send_fds(server, [LENGTH.pack(len(body))], files)
    server.sendall(body)
    return int(LENGTH.unpack(receive_exactly(server, LENGTH.size))[0])


def connect(folder: str, log: str, arguments: list[str]) -> socket.socket:
    """Connect to the server, and start it if no other client has.

    Raises:
        OSError: the server is gone, or does not know such arguments.
    """
    if not arguments or (arguments[0] != "-c" and arguments[0].startswith("-")):
        raise ConnectionError("options of the interpreter")
    if "resource_tracker" in " ".join(arguments[:2]):
        raise ConnectionError("the resource tracker cleans up after killed processes, and must not be killed with them")
    path = os.path.join(folder, SOCKET)
    with open(os.path.join(folder, COMMAND)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            start(path, folder, log)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def start(path: str, folder: str, log: str) -> None:
    """Start the server, which answers once it has imported everything."""
    import subprocess

    with socket.socket(socket.AF_UNIX) as listener, open(log, "ab") as output:
        listener.bind(path)
        listener.listen(64)
        subprocess.Popen(
            [sys.executable, "-m", "drpo_verl.cpu.prefork", str(listener.fileno()), folder],
            pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def open_files() -> list[int]:
    """Return the file descriptors that this process has inherited."""
    descriptors = []
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # that of the listing itself is closed already
            if os.get_inheritable(descriptor):
                descriptors.append(descriptor)
    return descriptors


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Receive ``size`` bytes.

    Raises:
        ConnectionError: the other side is gone before it has sent so many.
    """
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the fork server is gone")
        data += more
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))

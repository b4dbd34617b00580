"""Stands for a Python that a fork server forks: run without site-packages, so that it starts at once.

Usage: python -I -S prefork_client.py FOLDER LOG ARGUMENT...

The arguments are those of a Python. What this process has inherited is handed to a twin that the server forks
(environment, folder, niceness, blocked signals, files), and it lasts as long as the twin, for whoever waits for it.

The first one starts the server, in its own environment: Ray's C++ reads its settings, the job and the raylet from the
environment when it is loaded, and they are the same for all workers of a run. Without a server, or for arguments that
it does not know, this process becomes an ordinary Python.
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
"""Options that multiprocessing repeats where a variable has set them, which the server has set too."""


def main(folder: str, log: str, arguments: list[str]) -> int:
    """Run the twin; its exit code."""
    while arguments and arguments[0] in FROM_ENVIRONMENT:
        arguments = arguments[1:]
    try:
        files = open_files()
        server = connected(folder, log, arguments)
        pid = ask(server, arguments, files)
    except OSError:
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: signalled(pid, number))
    for descriptor in files:
        if descriptor > 2:
            os.close(descriptor)  # or pipes of the twin would stay open after it
    try:
        (status,) = STATUS.unpack(received(server, STATUS.size))
    except ConnectionError:  # nobody could wait for it any more
        signalled(pid, signal.SIGKILL)
        return 1
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:  # whose effect can not be changed
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def signalled(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def ask(server: socket.socket, arguments: list[str], files: list[int]) -> int:
    """Hand over what the twin is to be; its process id.

    Raises:
        ConnectionError: when the server can not fork it.
    """
    inherited = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "files": files,
    }
    body = json.dumps(inherited).encode()
    socket.send_fds(server, [LENGTH.pack(len(body))], files)
    server.sendall(body)
    return int(LENGTH.unpack(received(server, LENGTH.size))[0])


def connected(folder: str, log: str, arguments: list[str]) -> socket.socket:
    """A connection to the server, which is started if nobody has yet.

    Raises:
        OSError: when it is gone, or does not know such arguments.
    """
    if not arguments or (arguments[0] != "-c" and arguments[0].startswith("-")):
        raise ConnectionError("options of Python's own")
    if "resource_tracker" in " ".join(arguments[:2]):
        raise ConnectionError("what cleans up after processes that were killed must not be killed with them")
    path = os.path.join(folder, SOCKET)
    with open(os.path.join(folder, COMMAND)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            start(path, folder, log)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def start(path: str, folder: str, log: str) -> None:
    """Start the server, which answers when it has imported everything."""
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
    """The file descriptors that this process has inherited."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        try:
            if os.get_inheritable(descriptor):
                found.append(descriptor)
        except OSError:
            continue  # the listing's own
    return found


def received(connection: socket.socket, size: int) -> bytes:
    """So many bytes.

    Raises:
        ConnectionError: when there will not be so many, since the server is gone.
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

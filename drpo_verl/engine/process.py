"""Runs work in a process of its own, which answers, or reports why it failed.

Arguments and answer go through files that have no name, so that nothing is left of them however the two processes end.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from drpo_verl.errors import UserError

_ELSEWHERE = "See root cause above"
"""What vLLM says of an error of its engine's process, whose text is in the log alone."""
_POLL_SECONDS = 0.2
_REPORTED = 1
"""Exit code of a process that has said why it failed; also Python's own, of one that had no chance to."""
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def run(
    module: str,
    *arguments: object,
    task: str,
    log: Path,
    variables: Mapping[str, str],
    watch: Callable[[], None] = lambda: None,
) -> Any:
    """Run ``python -m <module>`` to its end, and return its answer.

    Args:
        module: a module whose main block calls ``serve``.
        *arguments: what its function takes; whatever can be pickled.
        task: begins the message of a failure.
        log: file to which its output is appended.
        variables: environment variables that it gets beside this process's.
        watch: called several times a second while it runs.

    Raises:
        UserError: it failed; the message has the reason that it reported, and the place of the log.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as returned, log.open("ab") as output:
        pickle.dump(arguments, given)
        given.flush()
        files = (given.fileno(), returned.fileno())
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, files), str(os.getpid())],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **variables}, pass_fds=files,
        )  # fmt: skip
        try:
            while process.poll() is None:
                watch()
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode == 0:
            return _read(returned)
        reason = (
            f"it ended with code {process.returncode} (-9: killed, usually since memory ran out; fewer prompts or a "
            "smaller --max-tokens take less)."
        )
        if process.returncode == _REPORTED and os.fstat(returned.fileno()).st_size:
            reason = _read(returned)
            if _ELSEWHERE in reason and (cause := _engine_error(log)):
                reason = f"vLLM's engine did not start: {cause}"
    raise UserError(f"{task}: {reason} The log is in {log}.")


def _engine_error(log: Path) -> str | None:
    """The last error that vLLM's engine or one of its workers has written to a log; None when there is none."""
    # Not the engine's own word for it that one of its workers has failed.
    error = r"^\((?:EngineCore|Worker)[^)]*\) (?!Exception: WorkerProc)([\w.]*(?:Error|Exception): .+)$"
    errors = re.findall(error, log.read_text(errors="replace"), re.MULTILINE)
    return errors[-1] if errors else None


def _read(file: IO[bytes]) -> Any:
    file.seek(0)  # the two processes share the place in it
    return pickle.load(file)


def serve(function: Callable[..., Any]) -> None:
    """Be the process that ``run`` starts: leave the function's answer for it, or the reason why there is none.

    It ends with the process that has started it, even where that is killed.
    """
    given, returned, parent = map(int, sys.argv[1:])
    _end_with(parent)
    with open(given, "rb") as arguments, open(returned, "wb") as answer:
        try:
            pickle.dump(function(*_read(arguments)), answer)
        except Exception as error:
            traceback.print_exc()
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            answer.seek(0)
            answer.truncate()
            pickle.dump(" ".join(reason.split()), answer)
            # Not raised again: on a normal exit, vLLM's own handlers end its processes.
            sys.exit(_REPORTED)


def _end_with(parent: int) -> None:
    """Have Linux end this process when its parent is gone, since nobody would take the answer."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # gone before that
        sys.exit(1)

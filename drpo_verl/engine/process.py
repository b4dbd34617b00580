"""Runs work in a process of its own, which answers, or reports why it failed."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drpo_verl.errors import UserError

_ARGUMENTS, _ANSWER, _ERROR = "arguments.pickle", "answer.pickle", "error.txt"
_POLL_SECONDS = 0.2
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
    with tempfile.TemporaryDirectory(prefix="drpo-verl-") as name, log.open("ab") as output:
        folder = Path(name)
        (folder / _ARGUMENTS).write_bytes(pickle.dumps(arguments))
        process = subprocess.Popen(
            [sys.executable, "-m", module, name, str(os.getpid())],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **variables},
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
            return pickle.loads((folder / _ANSWER).read_bytes())
        reason = (
            f"it ended with code {process.returncode} (-9: killed, usually since memory ran out; fewer prompts or a "
            "smaller --max-tokens take less)."
        )
        if (folder / _ERROR).exists():
            reason = (folder / _ERROR).read_text()
    raise UserError(f"{task}: {reason} The log is in {log}.")


def serve(function: Callable[..., Any]) -> None:
    """Be the process that ``run`` starts: leave the function's answer for it, or the reason why there is none.

    It ends with the process that has started it, even where that is killed.
    """
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    _end_with(parent)
    try:
        answer = function(*pickle.loads((folder / _ARGUMENTS).read_bytes()))
        (folder / _ANSWER).write_bytes(pickle.dumps(answer))
    except Exception as error:
        traceback.print_exc()
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        (folder / _ERROR).write_text(" ".join(reason.split()))
        # Not raised again: on a normal exit, vLLM's own handlers end its processes.
        sys.exit(1)


def _end_with(parent: int) -> None:
    """Have Linux end this process when its parent is gone, since nobody would take the answer."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # gone before that
        sys.exit(1)

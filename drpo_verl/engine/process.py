"""Runs work in a process of its own, which reports why it failed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from drpo_verl.errors import UserError

_ERROR = "error.txt"
_POLL_SECONDS = 0.2


def run(
    module: str, folder: Path, log: Path, variables: Mapping[str, str], watch: Callable[[], None] = lambda: None
) -> None:
    """Run ``python -m <module> <folder>`` to its end.

    Args:
        module: a module whose main block runs inside ``reporting``.
        folder: the folder of its job, its only argument.
        log: file to which its output is appended.
        variables: environment variables that it gets beside this process's.
        watch: called several times a second while it runs.

    Raises:
        UserError: it failed; the message is the reason that it reported.
    """
    (folder / _ERROR).unlink(missing_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
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
        return
    if (folder / _ERROR).exists():
        raise UserError((folder / _ERROR).read_text())
    raise UserError(
        f"it ended with code {process.returncode} (-9: killed, usually since memory ran out; fewer prompts or a "
        "smaller --max-tokens take less)."
    )


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Leave the reason of a failure in the job's folder, and end the process with exit code 1."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        (folder / _ERROR).write_text(" ".join(reason.split()))
        # Not raised again: on a normal exit, vLLM's own handlers end its processes.
        sys.exit(1)

"""Work that needs a process of its own: how it is started, and how it says why it failed."""

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
        module: whose main block is a `reporting`.
        folder: of its job.
        log: where its output goes, after what is there.
        variables: of its environment, over this process's.
        watch: called several times a second meanwhile.

    Raises:
        UserError: it failed, with its reason.
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
    """In the process: leave the reason of a failure in the job's folder."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        (folder / _ERROR).write_text(" ".join(reason.split()))
        # Not raised again: vLLM's processes are ended by its own handlers on a normal exit.
        sys.exit(1)

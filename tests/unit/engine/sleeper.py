"""A module for ``drpo_verl.engine.process``: says that it has started and sleeps as long as it is told, or fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

from drpo_verl.engine.process import serve


def sleep(started: Path, seconds: float, failure: tuple[str, str] | None = None) -> str:
    if failure is not None:
        print(failure[0])
        raise RuntimeError(failure[1])
    started.write_text(str(os.getpid()))
    time.sleep(seconds)
    return "slept"


if __name__ == "__main__":
    serve(sleep)

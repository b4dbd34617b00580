"""A module for ``drpo_verl.engine.process``: says that it has started, and sleeps for as long as it is told."""

from __future__ import annotations

import os
import time
from pathlib import Path

from drpo_verl.engine.process import serve


def sleep(started: Path, seconds: float) -> str:
    started.write_text(str(os.getpid()))
    time.sleep(seconds)
    return "slept"


if __name__ == "__main__":
    serve(sleep)

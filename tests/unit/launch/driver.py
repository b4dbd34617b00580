"""A driver as ``test_cleanup.py`` needs it: starts processes, makes a semaphore, and ends as it is told.

python driver.py RUN_FOLDER (killed | said | orderly)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from drpo_verl.launch.cleanup import cleaned_up_afterwards
from drpo_verl.launch.ending import RunFacts


def main(folder: Path, how: str) -> None:
    facts = RunFacts(str(folder), str(folder / "checkpoints"), 5, "go on", "begin again", resumes=False)
    with cleaned_up_afterwards(facts, own_ray=True, patience=0.5) as cleanup:
        left = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        semaphore = multiprocessing.get_context("spawn").Semaphore()
        (semaphore_file,) = Path("/dev/shm").glob(f"sem.{semaphore._semlock.name[1:]}")  # type: ignore[attr-defined]
        # Otherwise multiprocessing's own tracker would remove it.
        os.kill(multiprocessing.resource_tracker._resource_tracker._pid, signal.SIGKILL)  # type: ignore[attr-defined]
        temporary = Path(tempfile.gettempdir())
        (temporary / "ray" / "session_2026" / "logs").mkdir(parents=True)
        (temporary / "ray" / "session_2026" / "logs" / "raylet.out").write_text("the raylet")
        print(left.pid, semaphore_file, temporary, flush=True)
        sys.stdin.readline()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "said":
            facts.end("the run has hung")
            cleanup.ending_is_said()
            os._exit(3)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

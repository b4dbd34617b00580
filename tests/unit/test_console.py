"""What a person sees of a run that is announced to collapse."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from drpo_verl.alerts import Alert, Monitor
from drpo_verl.console import Follower


@pytest.mark.parametrize("terminal", [True, False])
def test_an_alert_is_a_line_of_its_own(tmp_path: Path, terminal: bool) -> None:
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step, value in enumerate([0.01, 0.2, 0.3, 0.3], start=1):
            file.write(json.dumps({"step": step, "data": {"mismatch/kl": value}}) + "\n")
    screen = io.StringIO()
    monitor = Monitor([Alert("kl", "mismatch/kl", above=0.1, steps=2, advice="Look [here].")])
    console = Console(file=screen, force_terminal=terminal, width=120)
    follower = Follower(tmp_path, console, 4, 60, tmp_path / "train.log", monitor)
    follower.start()
    follower.finish()
    shown = screen.getvalue()
    line = "warning: step 3: mismatch/kl is 0.3, above 0.1 for 2 steps (alerts.kl). Look [here]."
    assert shown.count("warning:") == 1
    assert (f"\x1b[1;33m{line}\x1b[0m" in shown) if terminal else (line in shown.splitlines())

"""What a person sees of a run that is announced to collapse."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from drpo_verl.launch.console import EXIT_DIED, EXIT_STALLED, Follower
from drpo_verl.launch.deaths import DeathWatch
from drpo_verl.metrics.alerts import Alert, Monitor

WATCH = DeathWatch("no run")


def _never(why: str, hint: str, exit_code: int) -> None:
    raise AssertionError(why)


REAL = Path(__file__).parents[2] / "data" / "dppo_topk_tv.jsonl"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_steps_of_a_real_run_are_seen(tmp_path: Path, terminal: bool) -> None:
    shutil.copy(REAL, tmp_path / "metrics.jsonl")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120)
    follower = Follower(tmp_path, console, 3, 60, tmp_path / "train.log", Monitor([]), WATCH, _never)
    follower.start()
    follower.finish()
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    first = json.loads(REAL.read_text().splitlines()[0])["data"]
    assert (
        f"step   1/3  reward {first['critic/score/mean']:.3f}  |pi-mu| {first['mismatch/abs_prob_diff_mean']:.1e} "
        f"max {first['mismatch/abs_prob_diff_max']:.1e}  outside 0.00%"
    ) in shown
    assert all(f"step   {step}/3" in shown for step in (1, 2, 3))
    assert ("left" in shown and "training" in shown and "━" in shown) is terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_an_alert_is_a_line_of_its_own(tmp_path: Path, terminal: bool) -> None:
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step, value in enumerate([0.01, 0.2, 0.3, 0.3], start=1):
            file.write(json.dumps({"step": step, "data": {"mismatch/kl": value}}) + "\n")
    screen = io.StringIO()
    monitor = Monitor([Alert("kl", "mismatch/kl", above=0.1, steps=2, advice="Look [here].")])
    console = Console(file=screen, force_terminal=terminal, width=120)
    follower = Follower(tmp_path, console, 4, 60, tmp_path / "train.log", monitor, WATCH, _never)
    follower.start()
    follower.finish()
    shown = screen.getvalue()
    line = "warning: step 3: mismatch/kl is 0.3, above 0.1 for 2 steps (alerts.kl). Look [here]."
    assert shown.count("warning:") == 1
    assert (f"\x1b[1;33m{line}\x1b[0m" in shown) if terminal else (line in shown.splitlines())


def test_a_line_that_is_no_step_is_said_and_the_run_is_followed_further(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step":1,"data":{}}\n{"step":2,"da{"step":3,"data":{}}\n{"step":4,"data":{}}\n'
    )
    screen = io.StringIO()
    follower = Follower(
        tmp_path, Console(file=screen, width=200), 4, 60, tmp_path / "train.log", Monitor([]), WATCH, _never
    )  # fmt: skip
    follower.start()
    follower.finish()
    shown = screen.getvalue()
    assert "step   1/4" in shown and "step   4/4" in shown
    assert f"warning: left out: {tmp_path / 'metrics.jsonl'}, line 2: is not JSON" in shown
    assert "line 2: is not JSON" in (tmp_path / "train.log").read_text()


def test_a_loss_that_is_not_finite_is_said_on_the_terminal_and_in_the_log(tmp_path: Path) -> None:
    # As verl's file logger writes it, whether it was NaN or infinity.
    lines = (json.dumps({"step": step, "data": {"actor/pg_loss": loss}}) for step, loss in ((1, 0.1), (2, None)))
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    follower = Follower(
        tmp_path, console, 2, 60, tmp_path / "train.log", Monitor([], nan="NaN or infinite"), WATCH, _never
    )
    follower.start()
    follower.finish()
    for said in (screen.getvalue(), (tmp_path / "train.log").read_text()):
        assert said.count("warning: step 2: actor/pg_loss is NaN or infinite. What is not finite") == 1


class _Dead(DeathWatch):
    def find(self) -> list[str]:
        return ["the vLLM server died", "an agent loop's worker died"]


class _Stopped(DeathWatch):
    def stopped(self) -> list[str]:
        return ["process 7 (vLLM) is stopped"]


@pytest.mark.parametrize(
    ("watch", "stall_seconds", "why", "exit_code"),
    [
        (_Dead("no run"), 60, "the vLLM server died", EXIT_DIED),
        (WATCH, 0, "the run has hung: no step finished within run.stall_seconds=0", EXIT_STALLED),
        (
            _Stopped("no run"), 0,
            "the run has hung: no step finished within run.stall_seconds=0; process 7 (vLLM) is stopped", EXIT_STALLED,
        ),
    ],
)  # fmt: skip
def test_a_run_that_can_not_go_on_is_given_up_once(
    watch: DeathWatch, stall_seconds: float, why: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drpo_verl.launch.console.DEATH_SECONDS", 0.0)
    given_up = []

    def give_up(why: str, hint: str, exit_code: int) -> None:
        given_up.append((why, exit_code))
        follower._finished.set()  # what ends the process in a run

    console, log = Console(file=io.StringIO()), tmp_path / "train.log"
    follower = Follower(tmp_path, console, 3, stall_seconds, log, Monitor([]), watch, give_up)
    follower.start()
    follower.join(10)
    assert given_up == [(why, exit_code)]


def test_verl_may_end_by_itself_when_a_process_has_died(tmp_path: Path) -> None:
    console, log = Console(file=io.StringIO()), tmp_path / "train.log"
    follower = Follower(tmp_path, console, 3, 60, log, Monitor([]), _Dead("no run"), _never)
    follower.start()
    time.sleep(1.5)
    follower.finish()

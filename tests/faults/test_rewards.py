"""What a run does with a reward function that fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from faults import END_SECONDS, ENDLESS, STALL_SECONDS, STALLS, Times, live, wait_for_end

FUNCTIONS = Path(__file__).with_name("reward_functions.py")
FAULTS = {
    "raises": "the reward function raised KeyError: 'no such answer' (data source 'drpo_verl/arithmetic', ground ",
    "none": "the reward function returned None, and has to return a finite number (data source ",
    "is_nan": "the reward function returned nan, and has to return a finite number (data source ",
    "text": "the reward function returned '0.5', and has to return a finite number (data source ",
}
WORDS = {"raises": "raises", "none": "returns None", "is_nan": "returns NaN", "text": "returns text"}


def reward(name: str) -> tuple[str, str]:
    section = "reward.custom_reward_function"
    return f"{section}.path={FUNCTIONS}", f"{section}.name={name}"


@pytest.mark.parametrize("name", FAULTS)
def test_a_reward_that_is_no_number(name: str, tmp_path: Path, times: Times) -> None:
    with live(tmp_path / name, *ENDLESS, *reward(name)) as run:
        run.wait_until(lambda: "the reward function r" in run.log)
        end = wait_for_end(run, time.monotonic())
        assert FAULTS[name] in end.line
        assert end.step == 1 and end.checkpoint is None
        times.note(f"a reward function {WORDS[name]}", end)


def test_a_reward_that_never_comes(tmp_path: Path, times: Times) -> None:
    with live(tmp_path / "hangs", *ENDLESS, STALLS, *reward("hangs_later")) as run:
        run.wait_for_steps(1)
        since = time.monotonic()
        end = wait_for_end(run, since, limit=STALL_SECONDS / 2 + END_SECONDS)
        assert f"the reward function has not returned within {STALL_SECONDS / 2:g} s" in end.line
        assert end.step == 2
        times.note(f"a reward function hangs, with `run.stall_seconds={STALL_SECONDS}`", end)

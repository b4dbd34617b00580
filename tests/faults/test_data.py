"""What a run does with samples from which nothing can be learned."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from faults import ENDLESS, THREE_STEPS, Times, live, wait_for_end
from test_rewards import reward

AGENTS = Path(__file__).with_name("agents.yaml")


def test_all_right_and_all_wrong(tmp_path: Path, times: Times) -> None:
    with live(tmp_path / "same", *THREE_STEPS, *reward("all_right_then_all_wrong")) as run:
        assert run.process.wait(300) == 0, run.explain()
        metrics = run.metrics
        assert [step["critic/score/mean"] for step in metrics[:2]] == [1.0, 0.0]
        assert 0.0 < metrics[2]["critic/score/mean"] < 1.0
        # A group whose samples all have the same score has no advantage: no gradient, and no NaN.
        assert [step["actor/grad_norm"] for step in metrics[:2]] == [0.0, 0.0] and metrics[2]["actor/grad_norm"] > 0.0
        assert all(math.isfinite(value) for step in metrics for value in step.values()), run.explain()
        times.goes_on("all samples of a step are right, and all of the next are wrong")


def test_a_response_without_any_token(tmp_path: Path, times: Times) -> None:
    agent = "actor_rollout_ref.rollout.agent"
    overrides = (f"{agent}.agent_loop_config_path={AGENTS}", f"{agent}.default_agent_loop=sometimes_empty")
    path = os.pathsep.join([str(AGENTS.parent), os.environ.get("PYTHONPATH", "")])
    with live(tmp_path / "empty", *ENDLESS, *overrides, variables={"PYTHONPATH": path}) as run:
        run.wait_until(lambda: "has no token" in run.log)
        end = wait_for_end(run, time.monotonic())
        assert "a sample could not be rolled out: the response to a prompt of " in end.line
        assert end.step == 1
        times.note("an agent loop returns a response without any token", end)

"""verl's own reward loop refuses what is no reward, in a run of ``drpo_verl.train``."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.reward_loop import reward_loop
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

import drpo_verl.plugin  # noqa: F401
from drpo_verl.adapters.failures import RewardError, RolloutError
from drpo_verl.configuration.sections import RUN_VARIABLE


class _Tokenizer:
    def decode(self, ids: torch.Tensor, **_: object) -> str:
        return "".join(map(chr, ids.tolist()))


def _sample() -> DataProto:
    ids = torch.tensor([[ord("4"), ord("6")]])
    return DataProto.from_dict(
        {"responses": ids, "attention_mask": torch.ones_like(ids)},
        {
            "data_source": np.array(["sums"], dtype=object),
            "reward_model": np.array([{"style": "rule", "ground_truth": "46"}], dtype=object),
            "extra_info": np.array([{"index": 0}], dtype=object),
        },
    )


def _score(function: Callable[..., Any], stall_seconds: float = 60) -> Any:
    """What verl's reward worker returns for one sample, with a reward function of one's own."""

    async def score() -> Any:
        worker = object.__new__(reward_loop.RewardLoopWorker)
        settings = {
            "run": {"stall_seconds": stall_seconds},
            "reward": {"custom_reward_function": {"path": "own.py"}, "reward_model": {"enable": False}},
        }
        worker.config = OmegaConf.create(settings)
        worker.reward_manager = NaiveRewardManager(worker.config, _Tokenizer(), function)
        worker.reward_manager.loop = asyncio.get_running_loop()
        return (await worker.compute_score(_sample()))["reward_score"]

    return asyncio.run(score())


@pytest.mark.parametrize("score", [1, 0.5, -3, True, np.float32(0.5), np.int64(2), torch.tensor(0.25), Decimal("0.5")])
def test_a_number_is_a_reward(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_VARIABLE, "run")
    assert _score(lambda **_: score) == score
    assert _score(lambda **_: {"score": score, "acc": math.nan}) == score


@pytest.mark.parametrize(
    "score", [None, math.nan, -math.inf, np.float64("nan"), "0.5", b"1", [1.0, 2.0], {"score": None}]
)
def test_anything_else_is_an_error_that_shows_it(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_VARIABLE, "run")
    shown = repr(score["score"] if isinstance(score, dict) else score)
    with pytest.raises(RewardError) as error:
        _score(lambda **_: score)
    assert str(error.value) == (
        f"the reward function returned {shown}, and has to return a finite number "
        "(data source 'sums', ground truth '46')"
    )
    monkeypatch.delenv(RUN_VARIABLE)  # verl's own command is left as it is
    assert repr(_score(lambda **_: score)) == shown


def test_what_it_raises_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> float:
        return {"46": 1.0}["47"]

    monkeypatch.setenv(RUN_VARIABLE, "run")
    with pytest.raises(RewardError, match=r"^the reward function raised KeyError: '47' \(data source 'sums', ground"):
        _score(broken)


def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_VARIABLE, "run")
    with pytest.raises(RewardError, match=r"^the reward function has not returned within 0.5 s, half of run.stall_sec"):
        _score(lambda **_: time.sleep(1.5), stall_seconds=1)


def test_a_response_without_any_token_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def output(*response: int) -> AgentLoopOutput:
        mask, log_probs = [1] * len(response), [-0.5] * len(response)
        return AgentLoopOutput(
            prompt_ids=[1, 2, 3], response_ids=[*response], response_mask=mask, response_logprobs=log_probs,
            reward_score=0.5, metrics=AgentLoopMetrics(),
        )  # fmt: skip

    monkeypatch.setenv(RUN_VARIABLE, "run")
    assert output(4).as_dict()["rm_scores"].tolist() == [0.5]
    with pytest.raises(RolloutError, match="the response to a prompt of 3 tokens has no token"):
        output().as_dict()
    monkeypatch.delenv(RUN_VARIABLE)
    with pytest.raises(IndexError):  # what verl itself says
        output().as_dict()

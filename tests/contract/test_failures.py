"""What verl passes over in silence is an error in a run of ``drpo_verl.train``."""

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
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.reward_loop import reward_loop
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.v1 import replay_buffer

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
            "data_source": np.array(["sums"]),
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


def _buffer(mode: str = "sync", refill: bool = False) -> Any:
    """verl's own replay buffer."""
    return replay_buffer.ReplayBuffer(
        mode, OmegaConf.create(), None, "drop", OmegaConf.create(), refill_fn=lambda *_: None, gen_batch_size=1,
        sync_refill_failed_groups=refill,
    )  # fmt: skip


def _prompts(**failed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tags of prompts, as verl has them in TransferQueue: one that is finished, and those that have failed."""
    tags = {"is_prompt": True, "global_steps": 1}
    return {"a": {**tags, "status": "finished"}} | {
        uid: {**tags, "status": "failure", **error} for uid, error in failed.items()
    }


FINAL = {"drpo_verl_error": "the reward function raised KeyError", "drpo_verl_error_is_final": True}
OTHERWISE = {"drpo_verl_error": "TimeoutError: no tool", "drpo_verl_error_is_final": False}


@pytest.mark.parametrize(
    ("mode", "refill", "partition", "error", "ends"),
    [
        ("sync", False, "train", OTHERWISE, True),
        ("sync", False, "val", OTHERWISE, True),
        ("sync", True, "train", OTHERWISE, False),  # verl replaces the prompt
        ("sync", True, "val", OTHERWISE, True),  # but not a held-out one
        ("colocate_async", False, "train", OTHERWISE, False),
        ("sync", True, "train", FINAL, True),
        ("separate_async", False, "train", FINAL, True),
    ],
)
def test_a_failed_sample_ends_a_run_unless_verl_replaces_it(
    mode: str, refill: bool, partition: str, error: dict[str, Any], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {partition: _prompts(b=error)}
    monkeypatch.setattr("transfer_queue.kv_list", lambda only=None: {only: tags[only]} if only else tags)
    buffer = _buffer(mode, refill)
    buffer._sync_metadata_from_transfer_queue()  # of verl's own command
    assert buffer.failure_keys[partition] == {"b"} and buffer.finished_keys[partition] == {"a"}
    monkeypatch.setenv(RUN_VARIABLE, "run")
    if not ends:
        buffer._sync_metadata_from_transfer_queue()
        return
    with pytest.raises(RolloutError) as raised:
        buffer._sync_metadata_from_transfer_queue()
    assert str(raised.value) == f"a sample could not be rolled out: {error['drpo_verl_error']}"


def test_several_failed_prompts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_VARIABLE, "run")
    tags = {"train": _prompts(b=OTHERWISE, c={})}
    monkeypatch.setattr("transfer_queue.kv_list", lambda only=None: tags)
    with pytest.raises(RolloutError, match=r"TimeoutError: no tool \(2 prompts failed so far\)$"):
        _buffer()._sync_metadata_from_transfer_queue()


@pytest.mark.parametrize("validate", [False, True])
def test_a_failed_sample_leaves_word(validate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    put = []

    async def async_kv_put(**arguments: Any) -> None:
        put.append(arguments)

    async def fail() -> None:
        worker = object.__new__(agent_loop.AgentLoopWorker)
        trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": validate}
        await worker._run_agent_loop({}, trajectory, agent_name="no such loop", uid="b")

    monkeypatch.setattr("transfer_queue.async_kv_put", async_kv_put)
    monkeypatch.setenv(RUN_VARIABLE, "run")
    with pytest.raises(AssertionError, match="no such loop"):
        asyncio.run(fail())
    (arguments,) = put
    assert arguments["key"] == "b" and arguments["partition_id"] == ("val" if validate else "train")
    assert arguments["tag"]["drpo_verl_error"].startswith("AssertionError: Agent loop no such loop not registered")
    assert arguments["tag"]["drpo_verl_error_is_final"] is False

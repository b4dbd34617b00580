"""What the actor's worker refuses: batches without the behaviour policy's log-probabilities."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from verl.workers.config import ActorConfig

from drpo_verl.adapters.actor import TrustRegionLoss
from drpo_verl.adapters.config import TrustRegionLossConfig
from drpo_verl.adapters.policy_loss import BehaviourLogProbError
from drpo_verl.seams import SeamError


def _actor_config() -> ActorConfig:
    return ActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=TrustRegionLossConfig(loss_mode="drpo", delta=0.5),
    )


def _jagged(*lengths: int) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.zeros(length) for length in lengths], layout=torch.jagged)


def test_megatrons_logits_without_their_layout_are_refused() -> None:
    config = ActorConfig(
        strategy="megatron",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=TrustRegionLossConfig(loss_mode="dppo_topk_tv", delta=0.2, top_k=4),
    )
    with pytest.raises(SeamError, match="data_format"):
        TrustRegionLoss(config)(data=TensorDict({}, batch_size=[]), student_logits=torch.zeros(1, 2, 8))


def test_padded_batches_are_counted_too() -> None:
    data = TensorDict({"response_mask": torch.ones(2, 3), "old_log_probs": torch.zeros(2, 2)}, batch_size=2)
    with pytest.raises(BehaviourLogProbError, match="4 rollout log-probabilities for 6 response positions"):
        TrustRegionLoss(_actor_config())({}, data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "0 rollout log-probabilities for"),
        ({"rollout_log_probs": (3, 1)}, "4 rollout log-probabilities for 5 response positions"),
    ],
)
def test_missing_rollout_log_probabilities_are_refused_with_their_number(
    fields: dict[str, tuple[int, ...]], message: str
) -> None:
    data = TensorDict(
        {"response_mask": _jagged(3, 2)} | {name: _jagged(*lengths) for name, lengths in fields.items()}, batch_size=2
    )
    with pytest.raises(BehaviourLogProbError, match=message):
        TrustRegionLoss(_actor_config())({}, data)

"""An objective that is registered when verl has its loss modes already is one of them at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.workers.config import ActorConfig

from drpo_verl.adapters import policy_loss
from drpo_verl.adapters.config import SettingError, TrustRegionLossConfig
from drpo_verl.losses import OBJECTIVES, Objective, register_objective
from drpo_verl.losses.enforcement import HARD_MASK
from drpo_verl.losses.geometry import K3
from drpo_verl.seams import SeamError

ROW = Objective(K3, HARD_MASK, "a test")


@pytest.fixture
def registered() -> Iterator[str]:
    register_objective("own_k3", ROW)
    yield "own_k3"
    del OBJECTIVES["own_k3"], POLICY_LOSS_REGISTRY["own_k3"]


def test_verl_computes_it(registered: str) -> None:
    settings = TrustRegionLossConfig(loss_mode=registered, delta=0.3)
    actor = ActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=settings)
    actor.global_batch_info.update(dp_size=1, batch_num_tokens=3, global_batch_size=1)
    log_mu = torch.tensor([[0.5, 0.5, 0.5]]).log()
    log_pi = torch.tensor([[0.6, 0.8, 0.2]]).log().requires_grad_()  # 1 - mu / pi: .17, .38, below 0
    loss, _ = get_policy_loss_fn(registered)(
        old_log_prob=log_mu, log_prob=log_pi, advantages=torch.ones(1, 3), response_mask=torch.ones(1, 3), config=actor
    )
    loss.backward()
    torch.testing.assert_close(log_pi.grad, -torch.tensor([[1.2, 0.0, 0.4]]) / 3)


def test_its_settings_are_held_to_its_parts(registered: str) -> None:
    with pytest.raises(SettingError, match=r"delta is not set, and loss_mode='own_k3' needs it"):
        TrustRegionLossConfig(loss_mode=registered)
    with pytest.raises(SettingError, match=r"region_delta=0.1 has no effect on loss_mode='own_k3'"):
        TrustRegionLossConfig(loss_mode=registered, delta=0.3, region_delta=0.1)


def test_a_loss_mode_that_verl_has_is_not_replaced() -> None:
    verl_loss = POLICY_LOSS_REGISTRY["gspo"]
    with pytest.raises(SeamError, match="'gspo' is already registered"):
        register_objective("gspo", ROW)
    assert POLICY_LOSS_REGISTRY["gspo"] is verl_loss and "gspo" not in OBJECTIVES


def test_a_second_registration_of_all_changes_nothing(registered: str) -> None:
    before = dict(POLICY_LOSS_REGISTRY)
    policy_loss.register()
    assert POLICY_LOSS_REGISTRY.keys() == before.keys()


def test_a_name_that_verl_has_and_that_came_before_verl_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    verl_loss = POLICY_LOSS_REGISTRY["gspo"]
    OBJECTIVES["gspo"] = ROW  # as register_objective leaves it where verl's losses are not there yet
    with caplog.at_level(logging.WARNING):
        policy_loss.register()
    assert "the objective 'gspo' is not registered" in caplog.text and "gspo" not in OBJECTIVES
    assert POLICY_LOSS_REGISTRY["gspo"] is verl_loss and "drpo" in POLICY_LOSS_REGISTRY

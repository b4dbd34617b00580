"""The actor's loss function: verl's own terms to the last digit, and what it refuses."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.utils.metric import Metric
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.utils.losses import ppo_loss, sft_loss

from drpo_verl.adapters import anchor
from drpo_verl.adapters.actor import TrustRegionTrainingWorker
from drpo_verl.adapters.actor_loss import STATISTICS, TrustRegionLoss
from drpo_verl.adapters.config import TrustRegionLossConfig
from drpo_verl.adapters.policy_loss import BehaviourLogProbError
from drpo_verl.seams import SeamError


def _actor_config(**settings: Any) -> ActorConfig:
    return ActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        **{"policy_loss": TrustRegionLossConfig(loss_mode="drpo", delta=0.5), **settings},
    )


def _jagged(*lengths: int) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.zeros(length) for length in lengths], layout=torch.jagged)


LENGTHS = ((3, 5), (2, 1), (4, 7))
"""Of the prompt and the response of each sample."""


def _micro_batch(pi_old_is_off: float = 0.0) -> tuple[dict[str, Tensor], TensorDict]:
    """What verl's engine hands to the loss: log pi and the entropy of all tokens, and the batch."""
    generator = torch.Generator().manual_seed(0)

    def noise(lengths: list[int]) -> list[Tensor]:
        return [torch.randn(length, generator=generator) for length in lengths]

    prompts, responses = ([lengths[i] for lengths in LENGTHS] for i in (0, 1))
    log_mu = [-row.abs() for row in noise(responses)]
    fields = {
        "prompts": [torch.zeros(length, dtype=torch.int64) for length in prompts],
        "responses": [torch.zeros(length, dtype=torch.int64) for length in responses],
        "response_mask": [torch.ones(length, dtype=torch.int64) for length in responses],
        "rollout_log_probs": log_mu,
        "old_log_probs": [mu + pi_old_is_off * row for mu, row in zip(log_mu, noise(responses), strict=True)],
        "ref_log_prob": [mu + 0.2 * row for mu, row in zip(log_mu, noise(responses), strict=True)],
        "advantages": noise(responses),
    }
    jagged = partial(torch.nested.as_nested_tensor, layout=torch.jagged)
    data = TensorDict({name: jagged(rows) for name, rows in fields.items()}, batch_size=len(LENGTHS))
    tensordict_utils.assign_non_tensor(data, dp_size=2, batch_num_tokens=20, global_batch_size=6)
    whole = [prompt + response for prompt, response in LENGTHS]
    output = {
        "log_probs": jagged([-row.abs() for row in noise(whole)]).requires_grad_(),
        "entropy": jagged([row.abs() for row in noise(whole)]).requires_grad_(),
    }
    return output, data


def _gradients(loss: Tensor, output: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(output.values()), allow_unused=True, retain_graph=True)


@pytest.mark.parametrize("mode", ["drpo", "dppo_binary_kl", "grpo"])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-sum-norm", "seq-mean-token-mean"])
@pytest.mark.parametrize(
    "terms", [{}, {"entropy_coeff": 0.01}, {"entropy_coeff": 0.01, "use_kl_loss": True, "kl_loss_coef": 0.3}], ids=str
)
def test_loss_gradient_and_metrics_are_those_of_ppo_loss_in_verl(
    mode: str, aggregation: str, terms: dict[str, Any]
) -> None:
    delta = {} if mode == "grpo" else {"delta": 0.1}
    config = _actor_config(
        policy_loss=TrustRegionLossConfig(loss_mode=mode, **delta), loss_agg_mode=aggregation, loss_scale_factor=50,
        **terms,
    )  # fmt: skip
    output, data = _micro_batch()
    if not terms:
        del output["entropy"]
    expected_loss, expected = ppo_loss(config=config, model_output=output, data=data)
    loss, metrics = TrustRegionLoss(config)(output, data)
    assert torch.equal(loss, expected_loss)
    for ours, theirs in zip(_gradients(loss, output), _gradients(expected_loss, output), strict=True):
        torch.testing.assert_close(ours.values(), theirs.values(), rtol=0, atol=0)
    statistics = metrics.pop(STATISTICS)
    # verl averages what a registered loss returns over micro-batches; ours is handed on as it is.
    for name, value in statistics.metrics().items():
        assert expected.pop(name).values == [value]
    assert metrics.keys() == expected.keys()
    for name, metric in metrics.items():
        if isinstance(metric, Metric):
            assert (metric.values, metric.aggregation) == (expected[name].values, expected[name].aggregation), name
        else:
            assert metric == expected[name]
    assert len([name for name in metrics if "loss" in name]) == 1 + ("entropy_coeff" in terms) + (
        "use_kl_loss" in terms
    )


def test_a_recomputed_anchor_is_beside_that_of_the_rollout() -> None:
    output, data = _micro_batch(pi_old_is_off=0.5)
    settings = TrustRegionLossConfig(
        loss_mode="minirl", delta=0.2, ratio_cap=2.0, anchor="recomputed", bypass_mode=False
    )
    _, metrics = TrustRegionLoss(_actor_config(policy_loss=settings))(output, data)
    log_mu = data["rollout_log_probs"].values()
    assert metrics[STATISTICS].metrics()["mismatch/behaviour_log_prob_mean"] == pytest.approx(log_mu.mean().item())


WHOLE_RESPONSES = {
    "cppo": {"delta": 0.2, "w_min": 0.8, "delta_b": 0.05, "delta_b_quantile": 0.9},
    "trm_avg": {"delta": 0.6},
    "drpo": {"delta": 0.5, "sequence_mask": {"metric": "geometric", "lower": 0.9}},
}


@pytest.mark.parametrize("mode", list(WHOLE_RESPONSES))
def test_a_response_has_the_same_gradient_whatever_micro_batch_it_is_in(mode: str) -> None:
    output, data = _micro_batch()
    settings = TrustRegionLossConfig(loss_mode=mode, **WHOLE_RESPONSES[mode])
    loss = TrustRegionLoss(_actor_config(policy_loss=settings))
    (together,) = torch.autograd.grad(loss(output, data)[0], output["log_probs"])
    names = [name for name, rows in data.items() if isinstance(rows, Tensor)]
    for row, expected in enumerate(together.unbind()):
        fields = {name: torch.nested.as_nested_tensor([data[name][row]], layout=torch.jagged) for name in names}
        alone = TensorDict(fields, batch_size=1)
        tensordict_utils.assign_non_tensor(alone, dp_size=2, batch_num_tokens=20, global_batch_size=6)
        rows = torch.nested.as_nested_tensor([output["log_probs"][row].detach()], layout=torch.jagged).requires_grad_()
        (gradient,) = torch.autograd.grad(loss({"log_probs": rows}, alone)[0], rows)
        torch.testing.assert_close(gradient.values(), expected, rtol=1e-6, atol=1e-9)
    assert (together.values() != 0).any()


def _anchored(mode: str, mini_batch: int, output: dict[str, Tensor], data: TensorDict) -> tuple[Tensor, dict[str, Any]]:
    """Loss and metrics of a method whose distance is from pi_old, in bypass mode."""
    delta = {} if mode in ("grpo", "surrogate") else {"delta": 0.05}
    from_pi_old = {} if mode == "surrogate" else {"anchor": "recomputed"}
    loss = TrustRegionLoss(_actor_config(policy_loss=TrustRegionLossConfig(loss_mode=mode, **delta, **from_pi_old)))
    loss.mini_batch = mini_batch
    return loss(output, data)


@pytest.mark.parametrize("mode", ["drpo", "dppo_binary_kl", "spo", "grpo"])
def test_in_the_first_mini_batch_pi_is_pi_old_and_nothing_is_needed(mode: str) -> None:
    output, data = _micro_batch()
    del output["entropy"]
    loss, metrics = _anchored(mode, 1, output, data)
    plain, _ = _anchored("surrogate", 1, output, data)
    (found,), (expected,) = (_gradients(each, output) for each in (loss, plain))
    torch.testing.assert_close(found.values(), expected.values(), rtol=1e-5, atol=1e-8)
    statistics = metrics[STATISTICS].metrics()
    assert statistics["trust_region/anchor_abs_prob_diff_max"] == statistics["trust_region/outside_frac"] == 0
    assert statistics["mismatch/abs_prob_diff_mean"] > 0.01


def test_later_mini_batches_are_measured_from_what_was_recomputed() -> None:
    output, data = _micro_batch()
    data[anchor.LOG_PROBS] = data["old_log_probs"] - 0.5
    _, metrics = _anchored("drpo", 2, output, data)
    statistics = metrics[STATISTICS].metrics()
    log_pi = torch.cat([row[prompt - 1 : -1] for row, (prompt, _) in zip(output["log_probs"].unbind(), LENGTHS,
                                                                       strict=True)]).detach()  # fmt: skip
    from_pi_old = (log_pi.exp() - (data["old_log_probs"].values() - 0.5).exp()).abs()
    assert statistics["trust_region/anchor_abs_prob_diff_mean"] == pytest.approx(from_pi_old.mean().item(), rel=1e-5)
    assert 0 < statistics["trust_region/outside_frac"] < 1
    data[anchor.LOG_PROBS].values()[0] = float("nan")
    with pytest.raises(anchor.AnchorError, match="has no log-probability under the recomputed pi_old"):
        _anchored("drpo", 2, output, data)
    del data[anchor.LOG_PROBS]
    with pytest.raises(anchor.AnchorError, match="a mini-batch after the first has no log-probabilities of pi_old"):
        _anchored("drpo", 2, output, data)


def test_samples_that_come_after_an_update_are_not_measured_from_what_it_left() -> None:
    with pytest.raises(anchor.AnchorError, match=r"updated 2 times.*bypass_mode=False"):
        anchor.recompute(None, TensorDict({}, batch_size=[]), updates_since_sync=2)


def test_clipping_in_verl_around_pi_old_gets_the_rest_of_the_ratio_as_a_weight() -> None:
    output, data = _micro_batch()
    log_mu, generator = data["old_log_probs"].unbind(), torch.Generator().manual_seed(1)
    log_pi_old = [row + 0.3 * torch.randn(len(row), generator=generator) for row in log_mu]
    jagged = partial(torch.nested.as_nested_tensor, layout=torch.jagged)
    data[anchor.LOG_PROBS] = jagged(log_pi_old)
    loss, _ = _anchored("grpo", 2, output, data)
    # As verl computes it where it recomputes pi_old, and is asked for token-level importance weights.
    ratio = [(old - mu).exp() for old, mu in zip(log_pi_old, log_mu, strict=True)]
    by_verl = data.clone()
    by_verl["old_log_probs"], by_verl["rollout_is_weights"] = jagged(log_pi_old), jagged(ratio)
    expected, _ = ppo_loss(config=_actor_config(policy_loss=PolicyLossConfig()), model_output=output, data=by_verl)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)


def test_logits_of_megatron_without_their_layout_are_refused() -> None:
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


def test_another_loss_function_of_the_actor_is_named(caplog: pytest.LogCaptureFixture) -> None:
    worker = object.__new__(TrustRegionTrainingWorker)  # without a model: only its loss function is set
    with caplog.at_level(logging.WARNING):
        worker.set_loss_fn(partial(sft_loss, config=_actor_config()))
    assert "not ppo_loss" in caplog.text and worker._loss is None
    assert worker.loss_fn.func is sft_loss

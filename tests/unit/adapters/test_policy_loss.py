"""The objectives in verl's registry: the same as verl's own where they should be, and loud about bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.workers.config import ActorConfig, PolicyLossConfig

from drpo_verl.adapters.config import TrustRegionLossConfig
from drpo_verl.adapters.policy_loss import BehaviourLogProbError, LossInputs, register, trust_region_loss
from drpo_verl.losses import OBJECTIVES
from drpo_verl.seams import SeamError

AGGREGATIONS = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


def _actor(policy_loss: PolicyLossConfig, **settings: Any) -> ActorConfig:
    config = ActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss, **settings
    )
    config.global_batch_info.update(dp_size=2, batch_num_tokens=700, global_batch_size=32, loss_scale_factor=50)
    return config


def _batch(seed: int = 0, rows: int = 16, width: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_mu = -4 * torch.rand(rows, width, generator=generator)
    log_pi = (log_mu + 0.6 * torch.randn(rows, width, generator=generator)).clamp(max=-1e-4)
    return {
        "old_log_prob": log_mu,
        "log_prob": log_pi.requires_grad_(),
        "advantages": torch.randn(rows, 1, generator=generator).expand(rows, width).contiguous(),
        "response_mask": torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=generator),
    }


PREFIX_METHODS = [name for name, row in OBJECTIVES.items() if row.scope is not None and row.scope.needs_budget]
OURS = [name for name, row in OBJECTIVES.items() if row.verl_loss is None]


def _inputs(mode: str, batch: dict[str, Tensor]) -> LossInputs:
    """A batch with what the objective needs beside the arguments of verl's policy losses."""
    needs = OBJECTIVES[mode]
    return LossInputs(
        **batch,
        log_behaviour=batch["old_log_prob"] + 0.1 if needs.recomputed_anchor else None,
        partition_divergence=torch.full_like(batch["old_log_prob"], 0.05) if needs.needs_top_k else None,
        partition_derivative=batch["old_log_prob"] + 2.0 if needs.direction.needs_derivative else None,
    )


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_at_most_two_fp32_tensors_are_saved_for_backward(mode: str, aggregation: str) -> None:
    batch, saved = _batch(), []
    shape = batch["log_prob"].shape

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape == shape and tensor.dtype == torch.float32:
            saved.append(tensor)
        return tensor

    config = _actor(TrustRegionLossConfig(loss_mode=mode, **SETTINGS[mode]))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _, _ = trust_region_loss(config, _inputs(mode, batch), aggregation)
    loss.backward()
    assert 1 <= len({tensor.data_ptr() for tensor in saved}) <= 2  # the loss's own, and one of verl's aggregation


@pytest.mark.parametrize("mode", OURS)
def test_a_micro_batch_waits_for_the_device_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> Any:
        original = getattr(Tensor, name)

        def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(self, *args, **kwargs)

        return call

    inputs = _inputs(mode, _batch())
    config = _actor(TrustRegionLossConfig(loss_mode=mode, **SETTINGS[mode]))
    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, counted(name))
    loss, _, accumulators = trust_region_loss(config, inputs, "seq-mean-token-sum-norm")
    accumulators.to_host_with(loss)
    loss.backward()
    assert calls == ["tolist"]  # of the statistics and the loss, all together


def _gradient(mode: str, config: ActorConfig, batch: dict[str, Tensor], aggregation: str, **extra: Any) -> Tensor:
    loss, _ = get_policy_loss_fn(mode)(**batch, loss_agg_mode=aggregation, config=config, **extra)
    return torch.autograd.grad(loss, batch["log_prob"])[0]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(("ours", "of_verl"), [("dppo_binary_tv", "dppo_tv"), ("dppo_binary_kl", "dppo_kl")])
def test_dppo_has_the_gradient_of_dppo_in_verl(ours: str, of_verl: str, weights: bool, aggregation: str) -> None:
    low, high, cap = 0.08, 0.12, 2.0
    batch = _batch()
    extra = {"rollout_is_weights": torch.rand_like(batch["old_log_prob"])} if weights else {}
    expected = _gradient(
        of_verl,
        _actor(PolicyLossConfig(), clip_ratio_low=low, clip_ratio_high=high, clip_ratio_c=cap),
        batch,
        aggregation,
        **extra,
    )
    settings = TrustRegionLossConfig(loss_mode=ours, delta_low=low, delta_high=high, ratio_cap=cap)
    gradient = _gradient(ours, _actor(settings), batch, aggregation, **extra)
    assert (expected == 0).logical_and(batch["response_mask"]).any(), "nothing was masked: the case tests nothing"
    torch.testing.assert_close(gradient, expected, rtol=2e-6, atol=1e-9)


SETTINGS: dict[str, dict[str, Any]] = {
    **{mode: {"delta": 0.1} for mode in OBJECTIVES},
    **{mode: {} for mode in ("surrogate", "pg_tis", "grpo", "grpo_clip_higher")},
    **{mode: {"delta": 0.1, "top_k": 4} for mode in ("dppo_topk_tv", "dppo_topk_kl", "drpo_topk")},
    "pdm": {"delta": 0.1, "top_k": 4, "tail": "uniform"},
    **{mode: {"delta": 0.15, "w_min": 0.8, "delta_b": 0.02, "delta_b_quantile": 0.9} for mode in PREFIX_METHODS},
    "mask_drpo": {"delta": 0.1, "region_delta": 0.05},
    **{mode: {"delta": 0.1, "anchor": "recomputed"} for mode in ("minirl", "drpo_decoupled")},
    "drpo_adaptive": {
        "delta": 0.1, "target_outside": 0.1, "adaptation_gain": 0.1, "max_delta_step": 1.2, "delta_min": 0.01,
        "delta_max": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "mode", [name for name, row in OBJECTIVES.items() if not (row.needs_top_k or row.recomputed_anchor or row.adaptive)]
)
def test_the_registry_returns_numbers_that_verl_can_average(mode: str) -> None:
    config = _actor(TrustRegionLossConfig(loss_mode=mode, **SETTINGS[mode]))
    loss, metrics = get_policy_loss_fn(mode)(**_batch(), config=config)
    _, _, accumulators = trust_region_loss(config, _inputs(mode, _batch()), "token-mean")
    assert accumulators.to_host().metrics().items() <= metrics.items()
    assert all(isinstance(value, float) for value in metrics.values()) and loss.requires_grad


@pytest.mark.parametrize("mode", ["grpo", "grpo_clip_higher"])
def test_the_baselines_are_the_losses_of_verl_and_say_what_it_masked(mode: str) -> None:
    batch, clips = _batch(), {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 1.5}
    expected = _gradient("vanilla", _actor(PolicyLossConfig(), **clips), batch, "token-mean")
    config = _actor(TrustRegionLossConfig(loss_mode=mode), **clips)
    assert torch.equal(_gradient(mode, config, batch, "token-mean"), expected)

    _, metrics = get_policy_loss_fn(mode)(**batch, config=config)
    masked = (expected == 0) & batch["response_mask"]
    assert metrics["trust_region/weight_mean"] == pytest.approx(
        1 - masked.sum().item() / batch["response_mask"].sum().item()
    )
    assert 0 < metrics["trust_region/outside_frac"] < masked.sum() / batch["response_mask"].sum()  # the dual clip's too


def test_minirl_masks_by_pi_old_and_weighs_by_mu() -> None:
    batch = _batch()
    log_mu = batch["old_log_prob"] + 0.3 * torch.randn_like(batch["old_log_prob"])
    config = _actor(TrustRegionLossConfig(loss_mode="minirl", delta=0.2, ratio_cap=2.0, anchor="recomputed"))
    loss, _, _ = trust_region_loss(config, LossInputs(**batch, log_behaviour=log_mu), "token-sum")
    (gradient,) = torch.autograd.grad(loss, batch["log_prob"])
    log_pi, mask = batch["log_prob"].detach(), batch["response_mask"]
    ratio_old, ratio_mu = (log_pi - batch["old_log_prob"]).exp(), (log_pi - log_mu).exp()
    masked = (batch["advantages"] * (ratio_old - 1) > 0) & ((ratio_old - 1).abs() > 0.2)
    expected = -batch["advantages"] * ratio_mu.clamp(max=2.0) * ~masked * mask * 2 / 1  # dp_size of _actor
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(SeamError, match="beside the recomputed"):
        _gradient("minirl", config, batch, "token-sum")


def test_nan_log_probabilities_are_refused_with_their_number() -> None:
    batch = _batch()
    batch["old_log_prob"][0, 0] = math.nan
    batch["old_log_prob"][3, 0] = -math.inf
    config = _actor(TrustRegionLossConfig(loss_mode="drpo", delta=0.5))
    with pytest.raises(BehaviourLogProbError, match=rf"2 of {int(batch['response_mask'].sum())} response tokens"):
        get_policy_loss_fn("drpo")(**batch, config=config)


def test_a_loss_mode_without_its_configuration_is_refused() -> None:
    with pytest.raises(SeamError, match=r"\+method=drpo"):
        get_policy_loss_fn("drpo")(**_batch(), config=_actor(PolicyLossConfig()))


def test_arguments_of_later_versions_are_tolerated() -> None:
    config = _actor(TrustRegionLossConfig(loss_mode="drpo", delta=0.5))
    get_policy_loss_fn("drpo")(**_batch(), config=config, something_new=None)


def test_other_losses_of_verl_are_untouched_and_no_foreign_name_is_taken() -> None:
    of_verl = {"vanilla", "dppo_tv", "dppo_kl", "cispo"}
    assert of_verl <= set(POLICY_LOSS_REGISTRY) and not of_verl & set(OBJECTIVES)
    assert all(POLICY_LOSS_REGISTRY[name].__module__.startswith("verl.") for name in of_verl)  # type: ignore[attr-defined]
    register()  # again: nothing changes
    ours = POLICY_LOSS_REGISTRY["drpo"]
    try:
        POLICY_LOSS_REGISTRY["drpo"] = POLICY_LOSS_REGISTRY["vanilla"]
        with pytest.raises(SeamError, match="already registered"):
            register()
    finally:
        POLICY_LOSS_REGISTRY["drpo"] = ours


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("mode", ["drpo", "grpo", "pdm", "minirl"])
def test_a_sequence_mask_takes_responses_out_and_leaves_the_denominator(mode: str, aggregation: str) -> None:
    batch = _batch()
    gradients, masked = [], {"metric": "geometric", "lower": 0.9, "upper": 1.3}
    for mask in (None, masked):
        config = _actor(TrustRegionLossConfig(loss_mode=mode, sequence_mask=mask, **SETTINGS[mode]))
        loss, _, accumulators = trust_region_loss(config, _inputs(mode, batch), aggregation)
        gradients.append(torch.autograd.grad(loss, batch["log_prob"])[0])
    mean = (batch["log_prob"] - batch["old_log_prob"] - (0.1 if mode == "minirl" else 0.0)).detach()
    mean = (mean * batch["response_mask"]).sum(-1) / batch["response_mask"].sum(-1)
    kept = (mean.exp() >= 0.9) & (mean.exp() <= 1.3)
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(gradients[1], gradients[0] * kept[:, None])
    share = (batch["response_mask"].sum(-1) * ~kept).sum() / batch["response_mask"].sum()
    assert accumulators.to_host().metrics()["trust_region/sequence_masked_frac"] == pytest.approx(share.item())

"""The papers' explicit objectives in float64, as they are printed: what autograd makes of them is the truth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from drpo_verl.losses import TrustRegion

LOG_RATIO_BOUND = 20.0


def ratio_of(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    return torch.exp((log_pi - log_mu).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))


def bernoulli_kl(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    """KL(Bern(mu) || Bern(pi)), with 1 - pi floored at 1e-12 and 0 log 0 = 0."""
    rest_mu = -torch.expm1(log_mu)
    rest_pi = (-torch.expm1(log_pi)).clamp(min=1e-12)
    return log_mu.exp() * (log_mu - log_pi) + torch.xlogy(rest_mu, rest_mu / rest_pi)


def distance(name: str, log_pi: Tensor, log_anchor: Tensor, partition: Tensor) -> Tensor:
    """What a hard mask compares with its threshold, unsigned."""
    if name in ("dppo_binary_tv", "mask_drpo"):
        return (log_pi.exp() - log_anchor.exp()).abs()
    if name == "dppo_binary_kl":
        return bernoulli_kl(log_pi, log_anchor)
    if name in ("dppo_topk_tv", "dppo_topk_kl", "drpo_topk"):
        return partition
    return (ratio_of(log_pi, log_anchor) - 1).abs()


def masked_out(
    name: str,
    region: TrustRegion,
    log_pi: Tensor,
    log_anchor: Tensor,
    advantages: Tensor,
    partition: Tensor,
    threshold: float | None = None,
) -> Tensor:
    """Where a token diverges, A (r - 1) > 0, and is outside its threshold; no graph."""
    with torch.no_grad():
        rises = log_pi > log_anchor
        delta = torch.where(rises, region.delta_high, region.delta_low) if threshold is None else threshold
        outside = (advantages * (log_pi - log_anchor) > 0) & (
            distance(name, log_pi, log_anchor, partition) > torch.as_tensor(delta)
        )
        if region.restrict_to == "positive":
            outside &= advantages > 0
        if region.restrict_to == "negative":
            outside &= advantages < 0
        return outside


def _truncated(log_pi: Tensor, log_mu: Tensor, advantages: Tensor, cap: float) -> Tensor:
    # min(r, C) as a detached coefficient of grad log pi.
    coefficient = ratio_of(log_pi, log_mu).clamp(max=cap).detach()
    return coefficient * advantages * (1 + log_pi - log_pi.detach())


def _importance_sampled(log_pi: Tensor, log_mu: Tensor, advantages: Tensor, cap: float | None) -> Tensor:
    if cap is None:
        return ratio_of(log_pi, log_mu) * advantages
    return _truncated(log_pi, log_mu, advantages, cap)


PENALTIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": lambda ratio, mu: mu * (ratio - 1) ** 2 / 2,
    "chi2": lambda ratio, mu: (ratio - 1) ** 2 / 2,
    "kl": lambda ratio, mu: ratio * ratio.log() - (ratio - 1),
    "tv": lambda ratio, mu: (ratio - 1).abs() / 2,
    "k3": lambda ratio, mu: ratio - 1 - ratio.log(),
}


def objective(  # noqa: PLR0911  one return for each kind
    name: str,
    region: TrustRegion,
    log_pi: Tensor,
    log_mu: Tensor,
    advantages: Tensor,
    *,
    log_anchor: Tensor,
    partition: Tensor,
    penalty: str | None = None,
) -> Tensor:
    """The objective of each token, to be maximised.

    surrogate: r A. CISPO: sg(min(r, C)) A log pi. PPO: the smaller of r A and clip(r) A, for A < 0 at least c A.
    DPPO, MiniRL: M min(r, C) A. SPO: r A - |A| / (2 eps) (r - 1)^2. DRPO: r A - |A| / (2 delta) mu (r - 1)^2.
    Mask-DRPO: DRPO's for the tokens that DPPO masks, else r A. DRPO over Top-K: sg(1 - sign(A (r - 1)) D / delta) r A.
    Decoupled DRPO: r A - |A| / (2 delta mu) (pi - pi_old)^2, whose expectation over mu is that of DRPO around pi_old.
    """
    ratio, mu, cap = ratio_of(log_pi, log_mu), log_mu.exp(), region.ratio_cap
    if name == "drpo_decoupled":
        delta = torch.where(log_pi > log_anchor, region.delta_high, region.delta_low).detach()
        if cap is not None:
            weight = 1 - advantages.sign() * (log_pi.exp() - log_anchor.exp()) / delta
            return weight.detach() * _truncated(log_pi, log_mu, advantages, cap)
        # Where r is clamped, the objective is constant: pi is, too, and still pi.
        pi = torch.where((log_pi - log_mu).abs() > LOG_RATIO_BOUND, log_pi.exp().detach(), ratio * mu)
        return ratio * advantages - advantages.abs() * (pi - log_anchor.exp()) ** 2 / (2 * mu * delta)
    if name == "surrogate":
        return _importance_sampled(log_pi, log_mu, advantages, cap)
    if name == "pg_tis":
        coefficient = ratio.detach() if cap is None else ratio.clamp(max=cap).detach()
        return coefficient * advantages * log_pi
    if name.startswith("grpo"):
        clipped = ratio.clamp(1 - region.delta_low, 1 + region.delta_high)
        smaller = torch.minimum(ratio * advantages, clipped * advantages)
        lower = torch.maximum(smaller, advantages * region.dual_clip) if region.dual_clip else smaller
        return torch.where(advantages < 0, lower, smaller)

    outside = masked_out(name, region, log_pi, log_anchor, advantages, partition)
    if name == "drpo_topk":
        delta = torch.where(log_pi > log_anchor, region.delta_high, region.delta_low)
        weight = 1 - advantages.sign() * (log_pi - log_mu).sign() * partition / delta
        return weight.detach() * _importance_sampled(log_pi, log_mu, advantages, cap)
    if name in ("spo", "drpo", "drpo_adaptive", "mask_drpo"):
        delta = torch.where((log_pi > log_mu).detach(), region.delta_high, region.delta_low)
        kind = penalty or ("chi2" if name == "spo" else "l2")
        size = advantages.abs() if region.advantage_weighted else 1.0
        regulariser = size * PENALTIES[kind](ratio, mu) / delta
        if cap is not None:
            # As DPPO's: everything but grad log pi is constant, and the ratio is truncated.
            moved = {  # the derivative of the penalty by log pi, per r
                "l2": log_pi.exp() - mu, "chi2": ratio - 1, "kl": ratio.log(), "tv": (log_pi - log_mu).sign() / 2,
                "k3": 1 - 1 / ratio,
            }[kind]  # fmt: skip
            weight = 1 - advantages.sign() * moved / delta
            if name == "mask_drpo":
                gated = masked_out(name, region, log_pi, log_anchor, advantages, partition, region.region_delta)
                weight = torch.where(gated, weight, 1.0)
            return weight.detach() * _truncated(log_pi, log_mu, advantages, cap)
        if name == "mask_drpo":
            gated = masked_out(name, region, log_pi, log_anchor, advantages, partition, threshold=region.region_delta)
            regulariser = gated.double() * regulariser
        return ratio * advantages - regulariser
    return (~outside).double() * _importance_sampled(log_pi, log_mu, advantages, cap)

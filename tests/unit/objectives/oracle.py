"""The papers' explicit objectives in float64, as they are printed: what autograd makes of them is the truth."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0


def _ratio(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    return torch.exp((log_pi - log_mu).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))


def drpo(log_pi: Tensor, log_mu: Tensor, advantages: Tensor, delta: float) -> Tensor:
    """r A - |A| / (2 delta) mu (r - 1)^2, DRPO section 3."""
    ratio = _ratio(log_pi, log_mu)
    return ratio * advantages - advantages.abs() / (2 * delta) * log_mu.exp() * (ratio - 1) ** 2


def _masked(log_pi: Tensor, log_mu: Tensor, advantages: Tensor, inside: Tensor, cap: float | None) -> Tensor:
    ratio = _ratio(log_pi, log_mu)
    mask = torch.where(advantages * (log_pi - log_mu) > 0, inside, True).double().detach()
    if cap is None:
        return mask * ratio * advantages
    # Truncated importance sampling: min(r, C) is a detached coefficient of grad log pi.
    truncated = ratio.clamp(max=cap).detach()
    return mask * truncated * advantages * (1 + log_pi - log_pi.detach())


def dppo_binary_tv(
    log_pi: Tensor, log_mu: Tensor, advantages: Tensor, delta: float, cap: float | None = None
) -> Tensor:
    """M min(r, C) A with M = 0 where diverging and abs(pi - mu) > delta, DPPO section 4."""
    inside = (log_pi.exp() - log_mu.exp()).abs() <= delta
    return _masked(log_pi, log_mu, advantages, inside, cap)


def bernoulli_kl(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    """KL(Bern(mu) || Bern(pi)), with 1 - pi floored at 1e-12 and 0 log 0 = 0."""
    rest_mu = -torch.expm1(log_mu)
    rest_pi = (-torch.expm1(log_pi)).clamp(min=1e-12)
    return log_mu.exp() * (log_mu - log_pi) + torch.xlogy(rest_mu, rest_mu / rest_pi)


def dppo_binary_kl(
    log_pi: Tensor, log_mu: Tensor, advantages: Tensor, delta: float, cap: float | None = None
) -> Tensor:
    """M min(r, C) A with M = 0 where diverging and the Bernoulli KL > delta, DPPO section 4."""
    return _masked(log_pi, log_mu, advantages, bernoulli_kl(log_pi, log_mu) <= delta, cap)


OBJECTIVES = {"drpo": drpo, "dppo_binary_tv": dppo_binary_tv, "dppo_binary_kl": dppo_binary_kl}

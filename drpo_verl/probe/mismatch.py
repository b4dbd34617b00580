"""The mismatch of two engines on the sampled tokens: over all of them, and by the probability of the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpo_verl.metrics.bins import PROBABILITY_BINS

Floats = NDArray[np.float64]

EDGES = tuple(PROBABILITY_BINS.values())[:-1]
"""Upper edges of the bins of mu, which belong to the bin below; the last bin has no upper edge."""
BINS = tuple(PROBABILITY_BINS)
"""Names of the bins of mu."""


@dataclass(frozen=True)
class Tokens:
    """The log-probabilities of N sampled tokens, ``[N]`` in float64, where exp() loses nothing of fp32 input.

    Attributes:
        log_mu: in the rollout engine, in nats.
        log_pi: in the training engine, in nats.
    """

    log_mu: Floats
    log_pi: Floats

    @property
    def mu(self) -> Floats:
        """The probability in the rollout engine, ``[N]``."""
        return np.exp(self.log_mu)

    @property
    def ratio(self) -> Floats:
        """The ratio pi / mu, ``[N]``."""
        return np.exp(self.log_pi - self.log_mu)

    @property
    def ratio_minus_one(self) -> Floats:
        """The error of the ratio, pi / mu - 1, ``[N]``."""
        return np.expm1(self.log_pi - self.log_mu)

    @property
    def prob_diff(self) -> Floats:
        """The error of the probability, pi - mu, ``[N]``; exact where the two are close."""
        return self.mu * self.ratio_minus_one

    @property
    def bins(self) -> NDArray[np.int64]:
        """The index in ``BINS`` of each token, ``[N]``."""
        return np.digitize(self.mu, EDGES, right=True)


def summarise(tokens: Tokens) -> dict[str, float]:
    """Compute the figures that training logs as ``inference_mismatch/*``, over all tokens.

    ``kl_k1`` and ``kl_k3`` estimate KL(mu || pi) per token in nats, and ``chi2`` chi^2(pi || mu) per token; ``ess`` is
    the effective sample size of the importance weights as a share of the tokens; ``correlation`` is Pearson's, of the
    two probabilities (1.0 where either is constant).
    """
    ratio, diff = tokens.ratio, np.abs(tokens.prob_diff)
    pi = tokens.mu + tokens.prob_diff
    varies = tokens.mu.std() > 0 and pi.std() > 0
    return {
        "kl_k1": _mean(tokens.log_mu - tokens.log_pi),
        "kl_k3": _mean(tokens.ratio_minus_one - (tokens.log_pi - tokens.log_mu)),
        "chi2": _mean(tokens.ratio_minus_one**2),
        "ess": float(ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())),
        "correlation": float(np.corrcoef(tokens.mu, pi)[0, 1]) if varies else 1.0,
        "behaviour_log_prob_mean": _mean(tokens.log_mu),
        "abs_prob_diff_mean": _mean(diff),
        **{f"abs_prob_diff_{name}": value for name, value in _quantiles(diff, p50=0.5, p99=0.99, max=1.0).items()},
        **{f"ratio_{name}": value for name, value in _quantiles(ratio, p01=0.01, p50=0.5, p99=0.99, max=1.0).items()},
    }


def by_probability(tokens: Tokens) -> list[dict[str, Any]]:
    """Summarise the mismatch in each bin of mu; a bin without tokens has no figures but their number.

    ``ratio_error`` is abs(pi / mu - 1).
    """
    diff, error, bins = np.abs(tokens.prob_diff), np.abs(tokens.ratio_minus_one), tokens.bins
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(BINS):
        inside = bins == index
        row: dict[str, Any] = {"bin": name, "tokens": int(inside.sum()), "share": float(inside.mean())}
        if inside.any():
            for figure, values in (("abs_prob_diff", diff[inside]), ("ratio_error", error[inside])):
                row[f"{figure}_mean"] = _mean(values)
                quantiles = _quantiles(values, p50=0.5, p99=0.99, max=1.0)
                row.update({f"{figure}_{name}": value for name, value in quantiles.items()})
        rows.append(row)
    return rows


def boundary(distances: Floats, share: float) -> dict[str, Any]:
    """Find the smallest threshold with at most ``share`` of the diverging tokens beyond it.

    Args:
        distances: D of each token, ``[N]``; a token with D = 0 does not diverge.
        share: share of the diverging tokens; between 0 and 1.

    Returns:
        The threshold ``delta``, 0 when no token diverges; the numbers of tokens that are ``outside`` and ``diverging``.
    """
    moved = np.sort(distances[distances > 0])
    delta = float(moved[len(moved) - 1 - int(share * len(moved))]) if len(moved) else 0.0
    return {"delta": delta, "outside": int((moved > delta).sum()), "diverging": len(moved)}


def suggest_delta(tokens: Tokens, share: float) -> dict[str, Any]:
    """Find the delta, in units of abs(pi - mu), at which ``share`` of the diverging tokens lie outside.

    With the same weights in both engines and advantages of either sign equally often, each token that differs between
    them diverges half of the time: if its probability rose, when A > 0 (``delta_high``); if it fell, when A < 0
    (``delta_low``).
    """
    diff = tokens.prob_diff
    sides = {"delta": np.abs(diff), "delta_high": np.maximum(diff, 0.0), "delta_low": np.maximum(-diff, 0.0)}
    return {"share": share, **{name: boundary(distances, share) for name, distances in sides.items()}}


def _mean(values: Floats) -> float:
    return float(values.mean())


def _quantiles(values: Floats, **at: float) -> dict[str, float]:
    return dict(zip(at, np.quantile(values, list(at.values())).tolist(), strict=True))

"""How far two engines are apart on the sampled tokens, in all and by the probability of the token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpo_verl.metrics.bins import PROBABILITY_BINS

Floats = NDArray[np.float64]

EDGES = tuple(PROBABILITY_BINS.values())[:-1]
"""Upper ends of the bins of mu, each of which holds its own; the last bin holds what is above."""
BINS = tuple(PROBABILITY_BINS)


@dataclass(frozen=True)
class Tokens:
    """The sampled tokens under both engines; each ``[N]`` in float64, where exp() loses nothing of fp32 input.

    Attributes:
        log_mu: of the rollout engine.
        log_pi: of the training engine.
    """

    log_mu: Floats
    log_pi: Floats

    @property
    def mu(self) -> Floats:
        """Probability under the rollout engine."""
        return np.exp(self.log_mu)

    @property
    def ratio(self) -> Floats:
        """pi / mu."""
        return np.exp(self.log_pi - self.log_mu)

    @property
    def ratio_minus_one(self) -> Floats:
        """pi / mu - 1."""
        return np.expm1(self.log_pi - self.log_mu)

    @property
    def prob_diff(self) -> Floats:
        """Pi - mu, exact where they are close."""
        return self.mu * self.ratio_minus_one

    @property
    def bins(self) -> NDArray[np.int64]:
        """The index in ``BINS`` of each token."""
        return np.digitize(self.mu, EDGES, right=True)


def summarise(tokens: Tokens) -> dict[str, float]:
    """The figures that training logs as ``inference_mismatch/*``, over all tokens.

    ``kl_k1`` and ``kl_k3`` estimate KL(mu || pi) and ``chi2`` chi^2(pi || mu), a token, in nats; ``ess`` is the
    effective sample size of the importance weights, as a share of the tokens; ``correlation`` is Pearson's, of the two
    probabilities (1.0 where either is constant).
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
    """The mismatch in each bin of mu; for a bin without tokens, their number alone.

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


@dataclass(frozen=True)
class Boundary:
    """A threshold and the tokens that it leaves outside.

    Attributes:
        delta: the threshold; 0 when no token diverges.
        outside: tokens beyond it.
        diverging: of how many.
    """

    delta: float
    outside: int
    diverging: int


def boundary(distances: Floats, share: float) -> Boundary:
    """The smallest threshold with at most ``share`` of the diverging tokens beyond it.

    Args:
        distances: D of each token; a token with D = 0 has not moved and diverges whatever it does.
        share: in (0, 1).
    """
    moved = np.sort(distances[distances > 0])
    if not len(moved):
        return Boundary(0.0, 0, 0)
    delta = moved[len(moved) - 1 - int(share * len(moved))]
    return Boundary(float(delta), int((moved > delta).sum()), len(moved))


def suggest_delta(tokens: Tokens, share: float) -> dict[str, Any]:
    """The delta in units of abs(pi - mu) at which ``share`` of the diverging tokens sit outside.

    With the same weights on both sides and an advantage of either sign equally often, each token that is not the same
    under both engines diverges half of the time: one whose probability rose when A > 0 (``delta_high``), one whose
    probability fell when A < 0 (``delta_low``).
    """
    diff = tokens.prob_diff
    parts = {"delta": np.abs(diff), "delta_high": np.maximum(diff, 0.0), "delta_low": np.maximum(-diff, 0.0)}
    return {"share": share, **{name: asdict(boundary(distances, share)) for name, distances in parts.items()}}


def _mean(values: Floats) -> float:
    return float(values.mean())


def _quantiles(values: Floats, **at: float) -> dict[str, float]:
    return dict(zip(at, np.quantile(values, list(at.values())).tolist(), strict=True))

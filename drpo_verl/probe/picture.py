"""The picture of a probe, which shows why the ratio is the wrong proxy.

It has the errors of the ratio and of the probability against the probability of the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drpo_verl.probe.mismatch import BINS, EDGES, Floats, Tokens
from drpo_verl.probe.settings import describe_rollout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_POINTS = 20_000
"""Points in a panel; of more tokens, a random choice is drawn. The lines are over all tokens."""
_MIN_TOKENS = 5
"""A bin with fewer tokens has no lines."""
_MIN_ERROR = 1e-9
"""The lowest error that is drawn: smaller ones and zeros are drawn there."""
_MIN_COMPLEMENT = 1e-7
"""The smallest 1 - mu that is drawn; in fp32, mu rounds to 1 above it."""
_TICKS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.999999)

_PLAIN, _CLIPPED, _OUTSIDE, _LINE = "#8c9196", "#e07b39", "#2f5fa8", "#1b1b1b"
_DASHED = (0, (2, 1.5))


@dataclass(frozen=True)
class _View:
    """What both panels share, for N tokens.

    Attributes:
        x: log10 of the odds of mu, ``[N]``.
        left: where the x axis begins.
        right: where the x axis ends.
        bins: index of each token's bin, ``[N]``.
        clipped: tokens whose ratio is beyond PPO's clip, ``[N]``.
        outside: tokens whose probability is beyond the suggested delta, ``[N]``.
        drawn: tokens that have a point, ``[N]``.
    """

    x: Floats
    left: float
    right: float
    bins: NDArray[np.int64]
    clipped: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    drawn: NDArray[np.bool_]


def draw(tokens: Tokens, result: Mapping[str, Any], path: Path) -> None:
    """Draw the tokens of a probe as a PNG file, with the suggested delta and PPO's clip of the probe's result."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    error, diff = np.abs(tokens.ratio_minus_one), np.abs(tokens.prob_diff)
    clip = float(result["methods"]["grpo"]["thresholds"]["delta_high"])
    suggested = result["suggested_delta"]["delta"]["delta"]
    x = _logit(tokens.log_mu)
    left, right = float(x.min()) - 0.3, float(x.max()) + 0.3
    drawn = np.random.default_rng(0).permutation(len(x)) < _MAX_POINTS
    view = _View(x, left, right, tokens.bins, error > clip, diff > suggested, drawn)

    figure, (above, below) = plt.subplots(2, 1, figsize=(8.5, 9.4), sharex=True, sharey=True, layout="constrained")
    figure.suptitle(_title(result), fontsize=11)
    _panel(above, view, error)
    _panel(below, view, diff)
    _threshold(above, clip, f"PPO's clip, {clip:g}", _CLIPPED)
    _threshold(below, suggested, f"suggested δ = {suggested:.2g}", _OUTSIDE)
    above.set_ylabel("error of the ratio: abs(π/μ − 1)")
    below.set_ylabel("error of the probability: abs(π − μ)")
    below.set_xlabel("μ, the probability of the sampled token in the rollout engine")
    above.set_ylim(*_y_limits(error, diff))
    above.set_xlim(view.left, view.right)
    ticks = [tick for tick in _TICKS if view.left < _odds(tick) < view.right]
    below.set_xticks([_odds(tick) for tick in ticks], [_label(tick) for tick in ticks])
    _shares(above, view)
    mark = partial(Line2D, [], [], ls="", marker="o", ms=6, mew=1.2)
    line = partial(Line2D, [], [], color=_LINE)
    clipped, outside = view.clipped.mean(), view.outside.mean()
    handles = [
        mark(mfc=_CLIPPED, mec=_CLIPPED, label=f"abs(π/μ − 1) > {clip:g}: {clipped:.2%} of the tokens"),
        mark(mfc="none", mec=_OUTSIDE, label=f"abs(π − μ) > {suggested:.2g}: {outside:.2%} of the tokens"),
        line(lw=2.2, label="median of a bin of μ"),
        line(lw=1.4, ls=_DASHED, label="99 % of its tokens are below"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _title(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    return (
        f"{Path(result['model']).name}: sampled by vLLM in {describe_rollout(settings)}, "
        f"scored in {settings['train_dtype']}\n"
        f"{result['tokens']:,} tokens of {result['samples']:,} responses, the same weights on both sides"
    )


def _logit(log_mu: Floats) -> Floats:
    # Spread at both ends: of most policies, half of the tokens are above 0.99, and their errors are the smallest.
    odds: Floats = (log_mu - np.log(np.maximum(-np.expm1(log_mu), _MIN_COMPLEMENT))) / np.log(10)
    return odds


def _y_limits(*errors: Floats) -> tuple[float, float]:
    both = np.concatenate(errors)
    lowest = np.quantile(both[both > 0], 0.005) if (both > 0).any() else _MIN_ERROR
    return max(float(lowest) / 3, _MIN_ERROR), max(float(both.max()) * 4, 2.0)


def _panel(axes: Axes, view: _View, error: Floats) -> None:
    axes.set_yscale("log")
    many = view.drawn.sum() > 5000
    size, alpha = (2.0, 0.25) if many else (3.5, 0.45)
    y = np.maximum(error, _MIN_ERROR)
    plain = view.drawn & ~view.clipped
    axes.plot(view.x[plain], y[plain], "o", ms=size, alpha=alpha, mew=0, color=_PLAIN)
    marked = view.drawn & view.clipped
    axes.plot(view.x[marked], y[marked], "o", ms=size + 0.5, alpha=0.75, mew=0, color=_CLIPPED)
    ringed = view.drawn & view.outside
    axes.plot(view.x[ringed], y[ringed], "o", ms=size + 3, mfc="none", mec=_OUTSIDE, mew=1.2)
    for index in range(len(BINS)):
        inside = view.bins == index
        if inside.sum() < _MIN_TOKENS:
            continue
        ends = _ends(index, view)
        median, p99 = np.maximum(np.quantile(error[inside], [0.5, 0.99]), _MIN_ERROR)
        axes.plot(ends, [median, median], color=_LINE, lw=2.2, solid_capstyle="butt")
        axes.plot(ends, [p99, p99], color=_LINE, lw=1.4, ls=_DASHED)
    for edge in EDGES:
        axes.axvline(_odds(edge), color="0.85", lw=0.8, zorder=0)
    axes.grid(axis="y", alpha=0.25)


def _ends(index: int, view: _View) -> tuple[float, float]:
    edges = [view.left, *map(_odds, EDGES), view.right]
    return max(edges[index], view.left), min(edges[index + 1], view.right)


def _shares(axes: Axes, view: _View) -> None:
    def above(x: float, text: str, side: str) -> None:
        axes.annotate(
            text, (x, 1), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points", ha=side,
            fontsize=9, color="0.3", annotation_clip=False,
        )  # fmt: skip

    above(view.left, "tokens", "right")
    for index in range(len(BINS)):
        share = (view.bins == index).mean()
        if share:
            above(sum(_ends(index, view)) / 2, f"{share:.1%}", "center")


def _threshold(axes: Axes, at: float, label: str, colour: str) -> None:
    if at > 0:
        axes.axhline(at, color=colour, lw=1.3, ls="--")
        # On the right, where tokens are certain and errors small.
        axes.annotate(
            label, (0.99, at), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
            ha="right", color=colour, fontsize=9,
        )  # fmt: skip


def _odds(probability: float) -> float:
    return float(_logit(np.log(np.array(probability))))


def _label(probability: float) -> str:
    if 1e-3 <= probability <= 0.999:
        return f"{probability:g}"
    nines = probability > 0.5
    power = round(np.log10(1 - probability if nines else probability))
    return f"$1-10^{{{power}}}$" if nines else f"$10^{{{power}}}$"

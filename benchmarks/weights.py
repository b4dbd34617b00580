"""The picture of docs/methods.md, every method's gradient weight: ``python -m benchmarks.weights docs/weights.png``.

Every curve is computed by the loss itself: its derivative with respect to log pi, per unit of -A r.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from drpo_verl.losses import OBJECTIVES, Objective, PrefixBudget, TrustRegion, token_loss
from drpo_verl.losses.partition import kullback_leibler_derivative

BEHAVIOUR = {0.01: "C3", 0.1: "C1", 0.5: "C2", 0.9: "C0"}
LIMITS = (-1.15, 2.15)
OTHERS = (0.65, 0.35)
"""For a Top-K distance: how two tokens that were not sampled, once alike, now share what the sampled one leaves."""


@dataclass(frozen=True)
class Panel:
    """A method at the thresholds of its +method= group, or at others where those show nothing.

    Attributes:
        title: above the panel.
        name: a row of the table.
        region: its thresholds.
        before: for the scope of a prefix or a sequence, how far the token before has moved.
        staleness: for a distance from a recomputed pi_old, how far pi_old is above mu.
        beside: a row with the same thresholds whose curves are drawn faintly beside.
    """

    title: str
    name: str
    region: TrustRegion
    before: float = 0.0
    staleness: float = 0.0
    beside: str | None = None


def _symmetric(delta: float, ratio_cap: float | None = None, **more: Any) -> TrustRegion:
    return TrustRegion(delta, delta, ratio_cap, **more)


PREFIX = _symmetric(0.15, prefix_budget=PrefixBudget(0.8, 0.02))
ROWS: dict[str, list[Panel]] = {
    "no boundary": [
        Panel("surrogate", "surrogate", _symmetric(1.0)),
        Panel("cispo, C = 1", "pg_tis", _symmetric(1.0, 1.0)),
        Panel("pg_tis, C = 3", "pg_tis", _symmetric(1.0, 3.0)),
    ],
    "masked by the ratio": [
        Panel("grpo, 0.2 / 0.2", "grpo", _symmetric(0.2)),
        Panel("grpo_clip_higher, 0.2 / 0.28", "grpo_clip_higher", TrustRegion(0.2, 0.28)),
        Panel("minirl, 0.2 / 0.27, C = 5", "minirl", TrustRegion(0.2, 0.27, ratio_cap=5.0)),
        Panel("icepop, r in [0.5, 5]", "icepop", TrustRegion(0.5, 4.0)),
    ],
    "masked by a divergence, C = 5": [
        Panel("dppo_binary_tv, δ = 0.2", "dppo_binary_tv", _symmetric(0.2, 5.0)),
        Panel("dppo_binary_kl, δ = 0.05", "dppo_binary_kl", _symmetric(0.05, 5.0)),
        Panel("dppo_topk_tv, δ = 0.2", "dppo_topk_tv", _symmetric(0.2, 5.0)),
        Panel("dppo_topk_kl, δ = 0.05", "dppo_topk_kl", _symmetric(0.05, 5.0)),
    ],
    "masked in another direction, or with a penalty of its own": [
        Panel("pdm, δ = 0.15, C = 5", "pdm", _symmetric(0.15, 5.0)),
        Panel("kpop, δ = 0.1 (its group: 2)", "kpop", _symmetric(0.1)),
        Panel("ipo, δ = 0.1, τ = 0.001", "ipo", _symmetric(0.1, log_ratio_penalty=1e-3)),
        Panel("prime_rl, δ = 0.2, τ = 0.001", "prime_rl", _symmetric(0.2, log_ratio_penalty=1e-3)),
    ],
    "quadratic": [
        Panel("spo, δ = 12.5", "spo", _symmetric(12.5)),
        Panel("drpo, δ = 12.5 (the default)", "drpo", _symmetric(12.5)),
        Panel("drpo, δ = 0.2 (drpo_adaptive’s first)", "drpo", _symmetric(0.2)),
        Panel("mask_drpo, δ = 0.2, region 0.15", "mask_drpo", _symmetric(0.2, region_delta=0.15)),
    ],
    "quadratic, of another distance (drpo_decoupled: from π_old, 0.08 above μ here, and faintly drpo, from μ)": [
        Panel("drpo_decoupled, δ = 0.2", "drpo_decoupled", _symmetric(0.2), staleness=0.08, beside="drpo"),
        Panel("drpo_topk, δ = 0.5", "drpo_topk", _symmetric(0.5)),
        Panel("drpo_prefix; the first token", "drpo_prefix", PREFIX),
        Panel("drpo_prefix; the one before by 0.1", "drpo_prefix", PREFIX, before=0.1),
    ],
    "masked by the distance of a prefix (the token before has moved by 0.1), or of the whole response": [
        Panel("cppo, δ = 0.15", "cppo", PREFIX, before=0.1),
        Panel("cppo_soft, δ = 0.15", "cppo_soft", PREFIX, before=0.1),
        Panel("trm_max, δ = 0.1", "trm_max", _symmetric(0.1)),
        Panel("trm_avg, δ = 0.002", "trm_avg", _symmetric(0.002)),
    ],
}
COLUMNS = 4


def _partition(objective: Objective, mu: float, pi: Tensor) -> dict[str, Tensor]:
    """Of three tokens, the sampled one and two others, which were alike and of which one has gained on the other."""
    if objective.geometry.divergence is None:
        return {}
    before = torch.tensor([mu, *((1 - mu) * share for share in (0.5, 0.5))]).expand(*pi.shape, 3)
    after = torch.stack([pi, *((1 - pi) * share for share in OTHERS)], dim=-1)
    partition = before.log(), after.log(), torch.ones_like(after), None
    return {
        "partition_divergence": objective.geometry.divergence(*partition),
        "partition_derivative": kullback_leibler_derivative(*partition, vocabulary=3, tail="aggregated"),
    }


def weight(panel: Panel, mu: float, pi: Tensor, advantage: float) -> Tensor:
    """w over a grid of pi, each the last token of a response of its own."""
    objective, log_pi = OBJECTIVES[panel.name], pi.log()[:, None].requires_grad_()
    length = 1 if panel.before == 0 else 2
    log_mu = torch.tensor([0.5] * (length - 1) + [mu]).log().expand(len(pi), length)
    moved = torch.full((len(pi), length - 1), 0.5 + panel.before).log()
    result = token_loss(
        objective, panel.region, torch.cat([moved, log_pi], dim=1), log_mu, torch.full_like(log_mu, advantage),
        torch.ones_like(log_mu), log_anchor=(log_mu.exp() + panel.staleness).log() if panel.staleness else None,
        **_partition(objective, mu, pi[:, None]),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(result.loss.sum(), log_pi)
    return (gradient / (-advantage * (log_pi - log_mu[:, -1:]).exp())).detach().squeeze(1)


def _draw(axes: Axes, panel: Panel) -> None:
    pi = torch.linspace(0.001, 0.999, 1500)
    for mu, colour in BEHAVIOUR.items():
        for advantage, style in ((1.0, "-"), (-1.0, "--")):
            if panel.beside is not None:
                around_mu = replace(panel, name=panel.beside, staleness=0.0)
                axes.plot(pi, weight(around_mu, mu, pi, advantage), color=colour, ls=style, lw=1.0, alpha=0.35)
            axes.plot(pi, weight(panel, mu, pi, advantage), color=colour, ls=style, lw=1.6)
        # w = 1, whatever the method, where pi has not moved from what it is measured against.
        axes.plot([mu + panel.staleness], [1.0], "o", color=colour, ms=4, zorder=3)
    axes.axhline(0, color="0.6", lw=0.8, zorder=0)
    axes.set(title=panel.title, xlim=(0, 1), ylim=LIMITS)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.25)


def main(path: Path) -> None:
    """Draw it."""
    figure = plt.figure(figsize=(12.5, 2.65 * len(ROWS)), layout="constrained")
    for part, (heading, panels) in zip(figure.subfigures(len(ROWS)), ROWS.items(), strict=True):
        part.suptitle(heading, fontsize=11, fontweight="bold", x=0.01, ha="left")
        grid = part.subplots(1, COLUMNS, sharey=True)
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel)
        for axes in grid[len(panels) :]:
            axes.axis("off")
            _explain(axes)
        grid[0].set_ylabel("gradient weight w")
    for axes in grid:
        axes.set_xlabel("π, the policy being trained")
    figure.savefig(path, dpi=110)


def _explain(axes: Axes) -> None:
    handles = [Line2D([], [], color=colour, label=f"μ = {mu}") for mu, colour in BEHAVIOUR.items()]
    handles += [Line2D([], [], color="0.3", ls=s, label=f"A {sign} 0") for s, sign in (("-", ">"), ("--", "<"))]
    axes.legend(handles=handles, loc="upper left", ncols=2, frameon=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

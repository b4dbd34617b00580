"""The picture of docs/methods.md, every method's gradient weight: ``python -m benchmarks.weights docs/weights.png``.

Every curve is computed by the loss itself: its derivative with respect to log pi, per unit of -A r.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

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
    """

    title: str
    name: str
    region: TrustRegion
    before: float = 0.0


EVERYWHERE = TrustRegion(1.0, 1.0)
PREFIX = TrustRegion(0.15, 0.15, prefix_budget=PrefixBudget(0.8, 0.02))
PANELS = [
    Panel("surrogate", "surrogate", EVERYWHERE),
    Panel("cispo, C = 1", "pg_tis", TrustRegion(1.0, 1.0, ratio_cap=1.0)),
    Panel("pg_tis, C = 3", "pg_tis", TrustRegion(1.0, 1.0, ratio_cap=3.0)),
    Panel("grpo, 0.2 / 0.2", "grpo", TrustRegion(0.2, 0.2)),
    Panel("grpo_clip_higher, 0.2 / 0.28", "grpo_clip_higher", TrustRegion(0.2, 0.28)),
    Panel("spo, δ = 12.5", "spo", TrustRegion(12.5, 12.5)),
    Panel("minirl, 0.2 / 0.27, C = 5", "minirl", TrustRegion(0.2, 0.27, ratio_cap=5.0)),
    Panel("dppo_binary_tv, δ = 0.2, C = 5", "dppo_binary_tv", TrustRegion(0.2, 0.2, ratio_cap=5.0)),
    Panel("dppo_binary_kl, δ = 0.05, C = 5", "dppo_binary_kl", TrustRegion(0.05, 0.05, ratio_cap=5.0)),
    Panel("dppo_topk_tv, δ = 0.2, C = 5", "dppo_topk_tv", TrustRegion(0.2, 0.2, ratio_cap=5.0)),
    Panel("dppo_topk_kl, δ = 0.05, C = 5", "dppo_topk_kl", TrustRegion(0.05, 0.05, ratio_cap=5.0)),
    Panel("drpo, δ = 12.5 (the default)", "drpo", TrustRegion(12.5, 12.5)),
    Panel("drpo, δ = 0.2 (where drpo_adaptive starts)", "drpo", TrustRegion(0.2, 0.2)),
    Panel("mask_drpo, δ = 0.2, region 0.15", "mask_drpo", TrustRegion(0.2, 0.2, region_delta=0.15)),
    Panel("drpo_topk, δ = 0.5", "drpo_topk", TrustRegion(0.5, 0.5)),
    Panel("ipo, δ = 0.1, τ = 0.001", "ipo", TrustRegion(0.1, 0.1, log_ratio_penalty=1e-3)),
    Panel("prime_rl, δ = 0.2, τ = 0.001", "prime_rl", TrustRegion(0.2, 0.2, log_ratio_penalty=1e-3)),
    Panel("icepop, r in [0.5, 5]", "icepop", TrustRegion(0.5, 4.0)),
    Panel("kpop, δ = 0.1 (its group: 2)", "kpop", TrustRegion(0.1, 0.1)),
    Panel("pdm, δ = 0.15, C = 5", "pdm", TrustRegion(0.15, 0.15, ratio_cap=5.0)),
    Panel("trm_max, δ = 0.1", "trm_max", TrustRegion(0.1, 0.1)),
    Panel("trm_avg, δ = 0.002", "trm_avg", TrustRegion(0.002, 0.002)),
    Panel("cppo, δ = 0.15; the first token", "cppo", PREFIX),
    Panel("cppo; the one before has moved by 0.1", "cppo", PREFIX, before=0.1),
    Panel("cppo_soft, likewise", "cppo_soft", PREFIX, before=0.1),
    Panel("drpo_prefix; the first token", "drpo_prefix", PREFIX),
    Panel("drpo_prefix; the one before by 0.1", "drpo_prefix", PREFIX, before=0.1),
]


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
        torch.ones_like(log_mu), **_partition(objective, mu, pi[:, None]),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(result.loss.sum(), log_pi)
    return (gradient / (-advantage * (log_pi - log_mu[:, -1:]).exp())).detach().squeeze(1)


def _draw(axes: Axes, panel: Panel) -> None:
    pi = torch.linspace(0.001, 0.999, 1500)
    for mu, colour in BEHAVIOUR.items():
        for advantage, style in ((1.0, "-"), (-1.0, "--")):
            axes.plot(pi, weight(panel, mu, pi, advantage), color=colour, ls=style, lw=1.6)
        axes.plot([mu], [1.0], "o", color=colour, ms=4, zorder=3)  # pi = mu: w = 1, whatever the method
    axes.axhline(0, color="0.6", lw=0.8, zorder=0)
    axes.set_title(panel.title, fontsize=10)
    axes.set_ylim(*LIMITS)
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.25)


def main(path: Path) -> None:
    """Draw it."""
    figure, grid = plt.subplots(9, 3, figsize=(10.5, 25.0), sharex=True, sharey=True, layout="constrained")
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        _draw(axes, panel)
    for axes in grid[-1]:
        axes.set_xlabel("π, the policy being trained")
    for axes in grid[:, 0]:
        axes.set_ylabel("gradient weight w")
    handles = [Line2D([], [], color=colour, label=f"μ = {mu}") for mu, colour in BEHAVIOUR.items()]
    handles += [Line2D([], [], color="0.3", ls=s, label=f"A {sign} 0") for s, sign in (("-", ">"), ("--", "<"))]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

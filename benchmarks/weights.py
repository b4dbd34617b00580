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

from drpo_verl.losses import OBJECTIVES, Objective, TrustRegion, token_loss

BEHAVIOUR = {0.01: "C3", 0.1: "C1", 0.5: "C2", 0.9: "C0"}
LIMITS = (-1.15, 2.15)
OTHERS = (0.65, 0.35)
"""For a Top-K distance: how two tokens that were not sampled, once alike, now share what the sampled one leaves."""


@dataclass(frozen=True)
class Panel:
    """A method at the thresholds of its +method= group, or at others where those show nothing."""

    title: str
    name: str
    region: TrustRegion


EVERYWHERE = TrustRegion(1.0, 1.0)
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
]


def _partition_divergence(objective: Objective, mu: float, pi: Tensor) -> Tensor | None:
    """Of three tokens, the sampled one and two others, which were alike and of which one has gained on the other."""
    if objective.geometry.divergence is None:
        return None
    before = torch.tensor([mu, *((1 - mu) * share for share in (0.5, 0.5))]).expand(*pi.shape, 3)
    after = torch.stack([pi, *((1 - pi) * share for share in OTHERS)], dim=-1)
    return objective.geometry.divergence(before.log(), after.log(), torch.ones_like(after), None)


def weight(panel: Panel, mu: float, pi: Tensor, advantage: float) -> Tensor:
    """w over a grid of pi."""
    log_pi = pi.log()[None].requires_grad_()
    log_mu = torch.full_like(log_pi, mu).log().detach()
    objective = OBJECTIVES[panel.name]
    result = token_loss(
        objective, panel.region, log_pi, log_mu, torch.full_like(log_mu, advantage), torch.ones_like(log_mu),
        partition_divergence=_partition_divergence(objective, mu, pi[None]),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(result.loss.sum(), log_pi)
    return (gradient / (-advantage * (log_pi - log_mu).exp())).detach().squeeze(0)


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
    figure, grid = plt.subplots(5, 3, figsize=(10.5, 14.0), sharex=True, sharey=True, layout="constrained")
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

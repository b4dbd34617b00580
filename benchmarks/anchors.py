"""The picture of docs/anchors.md, and its table of simulated runs: ``python -m benchmarks.anchors docs/anchors.png``.

What is drawn is computed by the losses themselves: gradient weights, and the training of a bandit whose rollout engine
samples from logits that are wrong by a fixed error, brought up to date after each rollout, as a quantised engine's are.
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
from torch import Tensor

from drpo_verl.losses import OBJECTIVES, TrustRegion, token_loss

MU, PI_OLD, DELTA = 0.55, 0.35, 0.25
AROUND_MU, FROM_PI_OLD = "C3", "C0"
_PI_OLD = r"$\pi_{\mathrm{old}}$"
ARMS, SAMPLES, ROLLOUTS, UPDATES, STEP, SEEDS = 8, 256, 60, 4, 0.5, 24
ERROR = 0.6


@dataclass(frozen=True)
class Run:
    """A simulated method.

    Attributes:
        label: in the picture.
        name: of the row.
        delta: its threshold.
        decoupled: whether distances are measured from pi_old.
        error: the standard deviation of the error of the rollout engine's logits.
        colour: in the picture; None leaves it out of there.
    """

    label: str
    name: str
    delta: float
    decoupled: bool
    error: float
    colour: str | None = None


RUNS = [
    Run("drpo, δ = 0.05, from π_old", "drpo", 0.05, True, ERROR, FROM_PI_OLD),
    Run("drpo, δ = 0.05, around μ; no engine error", "drpo", 0.05, False, 0.0, "0.25"),
    Run("drpo, δ = 0.05, around μ", "drpo", 0.05, False, ERROR, AROUND_MU),
    Run("drpo, δ = 0.2, from π_old", "drpo", 0.2, True, ERROR),
    Run("drpo, δ = 0.2, around μ", "drpo", 0.2, False, ERROR),
    Run("dppo_binary_tv, δ = 0.05, from π_old", "dppo_binary_tv", 0.05, True, ERROR),
    Run("dppo_binary_tv, δ = 0.05, around μ", "dppo_binary_tv", 0.05, False, ERROR),
    Run("surrogate (no trust region)", "surrogate", 1.0, False, ERROR),
]


def weight(pi: Tensor, anchor: float, advantage: float) -> Tensor:
    """The gradient weight w of DRPO on tokens of one mu, by the loss: its derivative per unit of -A r.

    Args:
        pi: probabilities under the policy, ``[N]``.
        anchor: the probability that the distance is measured from.
        advantage: A of all of them.
    """
    log_pi = pi.log()[None].requires_grad_()
    log_mu, log_anchor = (torch.full_like(pi, value).log()[None] for value in (MU, anchor))
    region, advantages = TrustRegion(DELTA, DELTA), torch.full_like(log_mu, advantage)
    loss = token_loss(
        OBJECTIVES["drpo"], region, log_pi, log_mu, advantages, torch.ones_like(log_mu), log_anchor=log_anchor
    ).loss
    (gradient,) = torch.autograd.grad(loss.sum(), log_pi)
    return (gradient / (-advantage * pi / MU))[0]


def simulate(run: Run, seed: int) -> list[float]:
    """The probability of the one arm that is rewarded, after each rollout.

    The policy is a softmax over logits, and so is mu, over logits plus an error that stays. Every rollout is trained on
    in ``UPDATES`` parts, with the advantages of its group.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = 0.5 * torch.randn(ARMS, generator=generator)
    error = run.error * torch.randn(ARMS, generator=generator)
    region, of_arm = TrustRegion(run.delta, run.delta), []
    for _ in range(ROLLOUTS):
        log_mu = (logits + error).log_softmax(-1)
        arms = torch.multinomial(log_mu.exp(), SAMPLES, replacement=True, generator=generator)
        rewards = (arms == 0).float()
        advantages, log_pi_old = rewards - rewards.mean(), logits.log_softmax(-1)[arms]
        for update in range(UPDATES):
            part = slice(update, None, UPDATES)
            trained = logits.clone().requires_grad_()
            log_pi = trained.log_softmax(-1)[arms[part]]
            loss = token_loss(
                OBJECTIVES[run.name], region, log_pi[None], log_mu[arms[part]][None], advantages[part][None],
                torch.ones_like(log_pi)[None], log_anchor=log_pi_old[part][None] if run.decoupled else None,
                diagnostics=False,
            ).loss  # fmt: skip
            logits = logits - STEP * torch.autograd.grad(loss.mean(), trained)[0]
        of_arm.append(logits.softmax(-1)[0].item())
    return of_arm


def draw_weights(axes: Axes) -> None:
    """W against pi for either sign of A, around mu and from pi_old."""
    pi = torch.linspace(0.02, 0.98, 300)
    for anchor, colour, name in ((MU, AROUND_MU, "around μ"), (PI_OLD, FROM_PI_OLD, f"from {_PI_OLD}")):
        for advantage, style in ((1.0, "-"), (-1.0, "--")):
            label = f"{name}, A {'>' if advantage > 0 else '<'} 0"
            axes.plot(pi, weight(pi, anchor, advantage), color=colour, linestyle=style, label=label)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set(title=f"drpo, δ = {DELTA}: the gradient weight w", xlabel="π", ylabel="w", ylim=(-1.6, 4.6), xlim=(0, 1))
    axes.legend(fontsize=8, loc="upper center", ncols=2, frameon=False)
    _mark(axes)


def draw_pull(axes: Axes) -> None:
    """What is left of the gradient when good and bad advantages are as likely: a pull to the anchor."""
    pi = torch.linspace(0.02, 0.98, 300)
    for anchor, colour, name in ((MU, AROUND_MU, "around μ"), (PI_OLD, FROM_PI_OLD, f"from {_PI_OLD}")):
        pull = (weight(pi, anchor, 1.0) - weight(pi, anchor, -1.0)) / 2
        axes.plot(pi, pull, color=colour, label=name)
        axes.plot(anchor, 0.0, "o", color=colour)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    before = (MU - PI_OLD) / DELTA
    axes.annotate(
        f"before any update, π = {_PI_OLD},\nμ pulls already", (PI_OLD, before), (0.58, 1.55), fontsize=8,
        arrowprops={"arrowstyle": "->", "color": AROUND_MU}, color=AROUND_MU,
    )  # fmt: skip
    axes.set(
        title="rewards that say nothing: mean of A w over A = ±1", xlabel="π", ylabel="pushes π up  (> 0) or down",
        xlim=(0, 1), ylim=(-2.6, 2.6),
    )  # fmt: skip
    axes.legend(fontsize=8, loc="lower left", frameon=False)
    _mark(axes)


def _mark(axes: Axes) -> None:
    for value, colour, name in ((MU, AROUND_MU, "μ"), (PI_OLD, FROM_PI_OLD, _PI_OLD)):
        axes.axvline(value, ymax=0.84, color=colour, linewidth=0.8, linestyle=":")
        axes.text(value + 0.01, axes.get_ylim()[0], name, color=colour, fontsize=9, va="bottom")


def _mathematics(label: str) -> str:
    return label.replace("π_old", _PI_OLD)


def draw_runs(axes: Axes, curves: dict[Run, Tensor]) -> None:
    """The rewarded arm's probability by rollout: each seed thinly, and their mean."""
    for run, of_seeds in curves.items():
        if run.colour is not None:
            axes.plot(of_seeds.T, color=run.colour, linewidth=0.5, alpha=0.25)
            style = (0, (2, 1.5)) if run.error == 0 else "-"
            axes.plot(of_seeds.mean(0), color=run.colour, linewidth=2.2, linestyle=style, label=_mathematics(run.label))
    axes.set(
        title=f"a bandit whose rollout engine errs ({SEEDS} seeds)", xlabel="rollout, of 4 updates",
        ylabel="probability of the rewarded arm", ylim=(0, 1.02), xlim=(0, ROLLOUTS - 1),
    )  # fmt: skip
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.2, 0.46), frameon=False)


def main(path: Path) -> None:
    """Draw the picture, and print the simulated runs as a table."""
    curves = {run: torch.tensor([simulate(run, seed) for seed in range(SEEDS)]) for run in RUNS}
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    draw_weights(left)
    draw_pull(middle)
    draw_runs(right, curves)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(
        "| method | error of the engine's logits | mean over seeds | least | seeds below 0.5 |\n|---|---|---|---|---|"
    )
    for run, of_seeds in curves.items():
        last = of_seeds[:, -1]
        fell = int((last < 0.5).sum())
        name = run.label.removesuffix("; no engine error")
        print(f"| {name} | {run.error:g} | {last.mean():.2f} | {last.min():.2f} | {fell} of {SEEDS} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The table of objectives: each method is one row, a geometry, a direction, an enforcement, a scope and an anchor."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from drpo_verl.losses import direction
from drpo_verl.losses.direction import BY_RATIO, PREDICTIVE, Direction
from drpo_verl.losses.enforcement import DETACHED, GATED_QUADRATIC, HARD_MASK, NONE, QUADRATIC, SOFT_MASK, Enforcement
from drpo_verl.losses.geometry import (
    BINARY_KL,
    DIRECTION_ONLY,
    K3,
    LOG_RATIO,
    PROBABILITY,
    RATIO,
    SYMMETRISED_BINARY_KL,
    TOP_K_KL,
    TOP_K_TV,
    Geometry,
)
from drpo_verl.losses.scope import PREFIX, SEQUENCE_MAX, SEQUENCE_MEAN, PrefixBudget, Scope


@dataclass(frozen=True)
class Objective:
    """A row of the table.

    Attributes:
        geometry: the distance of pi from the policy that it is measured against.
        enforcement: what that distance does to the gradient.
        source: where the method is defined.
        direction: which moves lead away from the policy that the distance is measured from.
        scope: of which tokens the distance counts when one of them is restrained; None for its own.
        mask_geometry: the distance by which a gated enforcement chooses its tokens.
        recomputed_anchor: whether the distance is measured from a recomputed pi_old instead of the behaviour policy
            mu; the importance ratio pi / mu in the gradient is that of mu either way.
        verl_loss: the name of verl's own loss that computes it; the row then says what that loss enforces.
        adaptive: whether delta follows a target, see ``drpo_verl.losses.adaptive``.
    """

    geometry: Geometry
    enforcement: Enforcement
    source: str
    direction: Direction = BY_RATIO
    scope: Scope | None = None
    mask_geometry: Geometry | None = None
    recomputed_anchor: bool = False
    verl_loss: str | None = None
    adaptive: bool = False

    @property
    def needs_top_k(self) -> bool:
        """Whether it is measured over the behaviour policy's Top-K tokens."""
        return self.geometry.divergence is not None


@dataclass(frozen=True)
class TrustRegion:
    """The settings of an objective.

    Attributes:
        delta_low: threshold for tokens whose probability falls (pi < mu); > 0, in the geometry's unit.
        delta_high: threshold for tokens whose probability rises (pi > mu); > 0.
        ratio_cap: C of truncated importance sampling, min(r, C) in the gradient's coefficient; None for no cap.
        region_delta: the threshold of ``mask_geometry``; > 0.
        advantage_weighted: whether a penalty is multiplied by abs(A), as in the papers.
        restrict_to: the sign of the advantage of the only tokens that may be masked or gated; None for both.
        dual_clip: for A < 0, the ratio above which the gradient is zero (dual-clip PPO, arXiv 1912.09729).
        prefix_budget: of the scope that needs one.
        log_ratio_penalty: tau of a penalty ``tau (log r)^2`` of each token, whatever its weight and advantage.
    """

    delta_low: float
    delta_high: float
    ratio_cap: float | None = None
    region_delta: float = math.inf
    advantage_weighted: bool = True
    restrict_to: Literal["positive", "negative"] | None = None
    dual_clip: float | None = None
    prefix_budget: PrefixBudget | None = None
    log_ratio_penalty: float | None = None


_LOGGER = logging.getLogger("drpo_verl")

_DPPO = "DPPO, arXiv 2602.04879, section 4"
_DRPO = "DRPO, arXiv 2606.09821, section 3"
_PPO = "PPO, arXiv 1707.06347, with the group-relative advantages of GRPO, arXiv 2402.03300"
_CPPO = "CPPO, arXiv 2606.10968"
_TRM = "TRM, arXiv 2512.23075"
_OURS = "this project"

OBJECTIVES: dict[str, Objective] = {
    "surrogate": Objective(PROBABILITY, NONE, "the importance-sampled policy gradient"),
    "grpo": Objective(RATIO, HARD_MASK, _PPO, verl_loss="vanilla"),
    "grpo_clip_higher": Objective(RATIO, HARD_MASK, "DAPO, arXiv 2503.14476", verl_loss="vanilla"),
    "spo": Objective(RATIO, QUADRATIC, "SPO, arXiv 2401.16025"),
    # verl has a loss mode "cispo" of its own, which clips the ratio from below too.
    "pg_tis": Objective(PROBABILITY, DETACHED, "CISPO: MiniMax-M1, arXiv 2506.13585"),
    "minirl": Objective(RATIO, HARD_MASK, "MiniRL, arXiv 2512.01374", recomputed_anchor=True),
    "dppo_binary_tv": Objective(PROBABILITY, HARD_MASK, _DPPO),
    "dppo_binary_kl": Objective(BINARY_KL, HARD_MASK, _DPPO),
    "dppo_topk_tv": Objective(TOP_K_TV, HARD_MASK, _DPPO),
    "dppo_topk_kl": Objective(TOP_K_KL, HARD_MASK, _DPPO),
    "drpo": Objective(PROBABILITY, QUADRATIC, _DRPO),
    "mask_drpo": Objective(PROBABILITY, GATED_QUADRATIC, _DRPO, mask_geometry=PROBABILITY),
    "drpo_decoupled": Objective(PROBABILITY, QUADRATIC, _OURS, recomputed_anchor=True),
    "drpo_topk": Objective(TOP_K_TV, QUADRATIC, _OURS),
    "drpo_adaptive": Objective(PROBABILITY, QUADRATIC, _OURS, adaptive=True),
    "ipo": Objective(PROBABILITY, HARD_MASK, "prime-rl, type ipo", direction=direction.NONE),
    "prime_rl": Objective(PROBABILITY, HARD_MASK, "prime-rl, type default"),
    "icepop": Objective(RATIO, HARD_MASK, "IcePop: Ring-1T, arXiv 2510.18855", direction=direction.NONE),
    "kpop": Objective(SYMMETRISED_BINARY_KL, HARD_MASK, "KPop, arXiv 2606.15079", direction=direction.NONE),
    "pdm": Objective(TOP_K_KL, HARD_MASK, "PDM, arXiv 2607.10848", direction=PREDICTIVE),
    "trm_max": Objective(BINARY_KL, HARD_MASK, _TRM, direction=direction.NONE, scope=SEQUENCE_MAX),
    "trm_avg": Objective(BINARY_KL, HARD_MASK, _TRM, direction=direction.NONE, scope=SEQUENCE_MEAN),
    "cppo": Objective(PROBABILITY, HARD_MASK, _CPPO, scope=PREFIX),
    "cppo_soft": Objective(PROBABILITY, SOFT_MASK, f"{_CPPO}, appendix C", scope=PREFIX),
    "drpo_prefix": Objective(PROBABILITY, QUADRATIC, _OURS, scope=PREFIX),
}

PENALTIES: dict[str, Geometry] = {
    "l2": PROBABILITY,
    "chi2": RATIO,
    "kl": LOG_RATIO,
    "tv": DIRECTION_ONLY,
    "k3": K3,
}
"""The divergences that DRPO's ablation puts in place of its own, "l2"; with "chi2", DRPO is SPO."""

_BUILT_IN = frozenset(OBJECTIVES)
_OBSERVERS: list[Callable[[str, Objective], None]] = []


def for_each_objective(action: Callable[[str, Objective], None]) -> None:
    """Call ``action`` with the name and the row of every objective, now and whenever another one is registered."""
    if action not in _OBSERVERS:
        _OBSERVERS.append(action)
    for name, row in list(OBJECTIVES.items()):
        try:
            action(name, row)
        except Exception as error:
            if name in _BUILT_IN:
                raise
            # A package may have registered a name before it could be known to be taken: no other method is to suffer.
            del OBJECTIVES[name]
            _LOGGER.warning("drpo-verl: the objective %r is not registered: %s", name, error)


def register_objective(name: str, row: Objective) -> None:
    """Add a method to the table, before or after verl has been imported.

    From then on ``name`` is a loss mode in verl's registry, in the settings and in the check, like every other one.

    Args:
        name: the loss mode, as ``actor_rollout_ref.actor.policy_loss.loss_mode`` names it.
        row: the objective.

    Raises:
        ValueError: when the name is taken or is not an identifier, or the row lacks what its parts need.
    """
    try:
        _require_registrable(name, row)
        for action in _OBSERVERS:
            action(name, row)
    except Exception as error:
        # verl reports what goes wrong in a plugin at DEBUG level only, and it is plugins that call this.
        _LOGGER.warning("drpo-verl: the objective %r is not registered: %s", name, error)
        raise
    OBJECTIVES[name] = row


def _require_registrable(name: str, row: Objective) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError("the name of a loss mode has letters, digits and underscores only.")
    if name in OBJECTIVES:
        raise ValueError(f"the name is taken ({OBJECTIVES[name].source}). Choose another.")
    if not isinstance(row, Objective):
        raise ValueError(f"its row is no Objective, but {row!r}.")
    if not isinstance(row.geometry, Geometry) or not isinstance(row.enforcement, Enforcement):
        raise ValueError("an Objective takes a Geometry and an Enforcement, in this order.")
    for reason in contradictions(row):
        raise ValueError(reason)


def contradictions(row: Objective) -> Iterator[str]:
    """Why choices of a row do not go together: each has a meaning, and the pair has none."""
    enforcement = row.enforcement
    if enforcement.gated and (row.mask_geometry is None or row.geometry.penalty is None):
        yield "a gated enforcement needs a mask_geometry, and a geometry with a penalty."
    if row.adaptive and not enforcement.needs_threshold:
        yield "there is no threshold to adapt."
    if not enforcement.needs_threshold and (row.direction is not BY_RATIO or row.scope is not None):
        yield "without a boundary there is nothing for a direction or a scope to choose."
    if row.direction is direction.NONE and enforcement.attenuates:
        yield (
            "w = 1 - D / delta without a direction turns tokens around that come back by themselves. Take a mask, hard "
            "or soft."
        )
    if row.direction.needs_derivative and row.geometry is not TOP_K_KL:
        yield (
            "a predictive direction is the sign of the derivative of the Top-K KL, and goes with that distance; over "
            "the sampled token alone it is the direction by the ratio."
        )
    if row.scope is not None and (row.adaptive or enforcement.gated):
        yield "delta is adapted, and tokens are gated, by each token's own distance, and the scope has another."
    if row.verl_loss is not None and (row.direction is not BY_RATIO or row.scope is not None):
        yield "verl's loss clips each token by its own ratio."

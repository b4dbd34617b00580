"""The trust-region objectives as pure functions of tensors: torch and the names of metrics, nothing of verl.

An objective is five choices: a *geometry* (how far the policy pi has moved from the behaviour policy mu on the sampled
token), a *direction* (whether the token's update leads further away), an *enforcement* (what that distance does to the
token's gradient), a *scope* (of which tokens it is the distance) and an *anchor* (from which policy it is measured).
Every member of the family has the gradient ``-A r w grad log pi`` and differs in the weight ``w`` alone, but for one
additive term that any of them can have, ``log_ratio_penalty``.
"""

from drpo_verl.losses.geometry import Geometry, TokenRatio
from drpo_verl.losses.scope import PrefixBudget
from drpo_verl.losses.sequence_mask import SequenceMask
from drpo_verl.losses.statistics import TokenAccumulators, TokenStatistics, step_metrics
from drpo_verl.losses.table import OBJECTIVES, PENALTIES, Objective, TrustRegion, register_objective
from drpo_verl.losses.token_loss import TokenLoss, token_loss

__all__ = [
    "OBJECTIVES",
    "PENALTIES",
    "Geometry",
    "Objective",
    "PrefixBudget",
    "SequenceMask",
    "TokenAccumulators",
    "TokenLoss",
    "TokenRatio",
    "TokenStatistics",
    "TrustRegion",
    "register_objective",
    "step_metrics",
    "token_loss",
]

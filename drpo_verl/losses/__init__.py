"""The trust-region objectives as pure functions of tensors: torch and the names of metrics, nothing of verl.

An objective is a *geometry* (how far the policy pi has moved from the behaviour policy mu on the sampled token), a
*direction* (whether the token's update leads further away) and an *enforcement* (what that distance does to the
token's gradient). Every member of the family has the gradient ``-A r w grad log pi`` and differs in the weight ``w``
alone.
"""

from drpo_verl.losses.geometry import Geometry, TokenRatio
from drpo_verl.losses.statistics import TokenAccumulators, TokenStatistics, step_metrics
from drpo_verl.losses.table import OBJECTIVES, PENALTIES, Objective, TrustRegion, register_objective
from drpo_verl.losses.token_loss import TokenLoss, token_loss

__all__ = [
    "OBJECTIVES",
    "PENALTIES",
    "Geometry",
    "Objective",
    "TokenAccumulators",
    "TokenLoss",
    "TokenRatio",
    "TokenStatistics",
    "TrustRegion",
    "register_objective",
    "step_metrics",
    "token_loss",
]

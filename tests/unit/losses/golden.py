"""Golden tensors: loss and gradient of every method on a fixed batch, kept as data.

``python tests/unit/losses/golden.py`` writes golden.json anew, which is only right after a deliberate change of a
method; the test says what differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from drpo_verl.losses import OBJECTIVES, TrustRegion, token_loss

FILE = Path(__file__).with_suffix(".json")

# Likely and rare tokens, near and far, both signs of A, one position of padding (the last).
LOG_MU = [[-0.01, -0.3, -0.7, -2.0, -5.0, -9.0], [-0.02, -0.5, -1.2, -3.0, -7.0, 0.0]]
LOG_PI = [[-0.05, -0.1, -1.5, -1.8, -3.0, -6.5], [-0.9, -0.49, -1.9, -3.2, -9.5, 0.0]]
LOG_OLD = [[-0.02, -0.25, -0.9, -2.1, -4.5, -8.0], [-0.03, -0.52, -1.0, -2.9, -7.5, 0.0]]
ADVANTAGES = [[1.0] * 6, [-0.6] * 6]
PARTITION = [[0.05, 0.16, 0.4, 0.04, 0.07, 0.01], [0.6, 0.02, 0.2, 0.05, 0.0, 0.0]]
MASK = [[1.0] * 6, [1.0] * 5 + [0.0]]
REGION = TrustRegion(delta_low=0.1, delta_high=0.14, region_delta=0.05)
CAPPED = TrustRegion(delta_low=0.1, delta_high=0.14, ratio_cap=2.0, region_delta=0.05)


def compute() -> dict[str, Any]:
    """By method: the per-token loss, its gradient and the metrics, uncapped and with C = 2."""
    found: dict[str, Any] = {}
    for name, objective in OBJECTIVES.items():
        for cap, region in (("", REGION), (" capped", CAPPED)):
            log_pi = torch.tensor(LOG_PI, requires_grad=True)
            result = token_loss(
                objective, region, log_pi, torch.tensor(LOG_MU), torch.tensor(ADVANTAGES), torch.tensor(MASK),
                log_anchor=torch.tensor(LOG_OLD) if objective.recomputed_anchor else None,
                partition_divergence=torch.tensor(PARTITION),
            )  # fmt: skip
            (gradient,) = torch.autograd.grad(result.loss.sum(), log_pi)
            found[name + cap] = {
                "loss": result.loss.tolist(),
                "gradient": gradient.tolist(),
                "metrics": result.accumulators.to_host().metrics(),
            }
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=1) + "\n")

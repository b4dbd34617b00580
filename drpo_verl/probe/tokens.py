"""The sampled tokens with the log-probabilities of both engines, as the processes hand them on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOT_LISTED = -1
"""The id of an entry of the Top-K that is no entry: the second mention of the sampled token."""


@dataclass(frozen=True)
class Samples:
    """What the rollout engine sampled: S responses of N tokens in all.

    Attributes:
        ids: prompt and response of each sample, one sample after the other.
        prompt_lengths: ``[S]``; > 0.
        response_lengths: ``[S]``; > 0.
        log_mu: of the sampled tokens, ``[N]``, in nats.
        top_ids: the sampled token and the K likeliest ones, ``[N, K + 1]``; see ``NOT_LISTED``.
        top_log_mu: their log-probabilities, ``[N, K + 1]``.
    """

    ids: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    response_lengths: NDArray[np.int64]
    log_mu: NDArray[np.float32]
    top_ids: NDArray[np.int64]
    top_log_mu: NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """What the training engine makes of them.

    Attributes:
        log_pi: of the sampled tokens, ``[N]``, in nats.
        top_log_pi: of ``Samples.top_ids``, ``[N, K + 1]``.
    """

    log_pi: NDArray[np.float32]
    top_log_pi: NDArray[np.float32]


def save(path: Path, arrays: Samples | Scores) -> None:
    """Write the arrays of either."""
    np.savez(path, **vars(arrays))


def load(path: Path, kind: type[Any]) -> Any:
    """Read what ``save`` has written of ``kind``."""
    with np.load(path) as arrays:
        return kind(**arrays)

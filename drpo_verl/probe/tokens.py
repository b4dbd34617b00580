"""The sampled tokens and their log-probabilities in both engines, as the engine processes hand them on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOT_LISTED = -1
"""The token id of an empty entry of the Top-K: the sampled token comes first and is not listed a second time."""


@dataclass(frozen=True)
class Samples:
    """What the rollout engine sampled: S responses, of N tokens in all.

    Attributes:
        ids: token ids of the prompt and the response of each sample, one sample after the other.
        prompt_lengths: tokens of each prompt, ``[S]``; above 0.
        response_lengths: tokens of each response, ``[S]``; above 0.
        log_mu: log-probabilities of the sampled tokens, ``[N]``, in nats.
        top_ids: token ids of the sampled token and the K likeliest ones, ``[N, K + 1]``; see ``NOT_LISTED``.
        top_log_mu: the log-probabilities of ``top_ids``, ``[N, K + 1]``, in nats.
    """

    ids: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    response_lengths: NDArray[np.int64]
    log_mu: NDArray[np.float32]
    top_ids: NDArray[np.int64]
    top_log_mu: NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """The training engine's log-probabilities of the same tokens.

    Attributes:
        log_pi: log-probabilities of the sampled tokens, ``[N]``, in nats.
        top_log_pi: log-probabilities of ``Samples.top_ids``, ``[N, K + 1]``, in nats.
        vocabulary: how many tokens the model tells apart.
    """

    log_pi: NDArray[np.float32]
    top_log_pi: NDArray[np.float32]
    vocabulary: int

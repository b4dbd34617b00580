"""Colours and words that the pictures of docs/study.md share."""

from __future__ import annotations

from benchmarks.study_map import AROUND_MU, FROM_PI_OLD, Method

# Okabe and Ito's colours, which people with any colour vision tell apart; shapes and dashes say the same again.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip

LEAST = 1e-4
"""Where a share or a distance of 0 is drawn, and all that are less than this."""


def pi_old(text: str) -> str:
    """A label with its index typeset."""
    return text.replace("π_old", r"$\pi_{\mathrm{old}}$")


def method_label(method: Method) -> str:
    """What a method is called where its family is not said beside it."""
    return f"{method.family}, {method.label}" if method.family in (AROUND_MU, FROM_PI_OLD) else method.label

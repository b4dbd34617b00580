"""What the product says of the study."""

from __future__ import annotations

import pytest

from drpo_verl.evidence import (
    HELPS,
    HURTS,
    SAME,
    UNDECIDED,
    Evidence,
    all_evidence,
    for_mismatch,
    for_numbers,
    too_tight,
    where_mu_hurts,
)

INT3 = Evidence(
    "fp32, weights in int3 and back", "fp32", 4, 0.06, 35,
    {"mu": {0.2: HURTS, 0.5: HURTS, 1.0: UNDECIDED, 12.5: SAME}, "pi_old": {0.2: HELPS}},
    {"DPPO-TV 0.2": SAME, "GRPO 0.2/0.28": HURTS, "PG-TIS, C = 1": HURTS},
)  # fmt: skip
INT4 = Evidence("fp32, weights in int4 and back", "fp32", 4, 0.025, 21, {"mu": {0.1: HURTS}, "pi_old": {}})
STALE = Evidence("fp32, weights in fp8 and back", "fp32", 16, 0.004, 21, {"mu": {0.1: SAME}, "pi_old": {}})
SAME_NUMBERS = [Evidence("fp32", "fp32", updates, 1e-7, 9, {"mu": {12.5: SAME}, "pi_old": {}}) for updates in (1, 4)]
KNOWN = [INT3, INT4, STALE, *SAME_NUMBERS]


def test_the_sentence_has_each_anchor_and_what_it_rests_on() -> None:
    assert INT3.sentence() == (
        "With 4 updates a rollout and a mean abs(π − μ) of 0.06, against no trust region: DRPO around μ hurts at δ "
        "0.2, 0.5, ends about the same at δ 12.5, is undecided at δ 1; from π_old (anchor=recomputed) helps at δ 0.2. "
        "Other methods: DPPO-TV 0.2: ends about the same; GRPO 0.2/0.28: hurts; PG-TIS, C = 1: hurts. "
        "Supported by 35 runs of a policy of two million parameters (docs/study.md)."
    )
    assert (
        "π_old" not in INT4.sentence()
        and "Other" not in INT4.sentence()
        and "1 update a rollout and a mean abs(π − μ) of 0," in SAME_NUMBERS[0].sentence()
    )


@pytest.mark.parametrize(
    ("mismatch", "found"),
    [
        (0.05, [INT3]), (0.035, [INT4]), (0.0045, [STALE]), (0.0, SAME_NUMBERS), (9e-5, SAME_NUMBERS),
        (0.001, []), (0.13, []),
    ],
)  # fmt: skip
def test_a_mismatch_has_the_nearest_that_was_studied_and_none_far_from_all(
    mismatch: float, found: list[Evidence]
) -> None:
    assert for_mismatch(mismatch, KNOWN) == found


@pytest.mark.parametrize(
    ("rollout", "updates", "found"),
    [
        ("fp32", 1, SAME_NUMBERS[0]), ("fp32", 2, SAME_NUMBERS[1]), ("fp32", 8, SAME_NUMBERS[1]), ("fp32", 9, None),
        (INT3.rollout, 4, INT3), (INT3.rollout, 1, None), ("bf16", 4, None),
    ],
)  # fmt: skip
def test_a_run_has_what_was_found_with_its_numbers(rollout: str, updates: int, found: Evidence | None) -> None:
    assert for_numbers(rollout, "fp32", updates, KNOWN) == found
    assert for_numbers(rollout, "bf16", updates, KNOWN) is None


def test_mu_hurts_where_the_mismatch_is_least_of_those_in_which_it_does() -> None:
    assert where_mu_hurts(KNOWN) == INT4
    assert where_mu_hurts([STALE, *SAME_NUMBERS]) is None


def test_a_delta_is_too_tight_by_what_it_is_of_the_mismatch() -> None:
    assert too_tight(0.03, KNOWN) == (
        "DRPO around μ has hurt at these multiples of the mean abs(π − μ): 4 where it was 0.025; 3.3 to 8.3 where it "
        "was 0.06. 3.3 to 8.3 times are δ 0.1 to 0.25 here."
    )
    stale = Evidence("fp32", "fp32", 16, 0.03, 9, {"mu": {1.0: HURTS}, "pi_old": {}})
    assert too_tight(0.03, [*KNOWN, stale]) == too_tight(0.03, KNOWN)  # it may be staleness that hurts there
    assert too_tight(0.012, KNOWN) is None and too_tight(0.13, KNOWN) is None  # nothing is known so far from both
    assert "4 times are δ 0.1 here" in str(too_tight(0.025, [INT4, STALE])) and too_tight(0.025, [STALE]) is None


def test_what_is_shipped_can_be_read() -> None:
    for each in all_evidence():
        assert each.runs >= 6 and each.updates >= 1 and each.sentence()
        assert {verdict for of_delta in each.found.values() for verdict in of_delta.values()} <= {
            HELPS, HURTS, SAME, UNDECIDED,
        }  # fmt: skip

"""docs/study.md, its pictures and what the product knows of the study are those of the committed results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from benchmarks.study_claims import CLAIMS, NOT_MEASURED, REFUTED, SUPPORTED, UNDECIDED, VERDICT, with_verdicts
from benchmarks.study_evidence import evidence
from benchmarks.study_map import PLAN, RESULTS, Setting, StudyMap
from benchmarks.study_page import EVIDENCE, PAGE, cells_table, deltas_table, summary, with_results
from benchmarks.study_pictures import PICTURES, draw
from drpo_verl.metrics import names
from drpo_verl.study.cells import Cell, MadeRun
from drpo_verl.study.plan import Plan, read_plan

ROOT = Path(__file__).parents[2]
INT3 = Setting("int3", "u4")


@pytest.fixture(scope="module")
def committed() -> StudyMap:
    return StudyMap.read(ROOT)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(ROOT / PLAN)


def _study(plan: Plan, ends: Mapping[tuple[str, str, str], Sequence[float]]) -> StudyMap:
    """The plan, with runs that have a constant reward of these sizes, for the seeds 1, 2, ..."""
    cells: dict[tuple[str, ...], Cell] = {}
    for run in plan.runs:
        place = tuple(run.choices.values())
        runs = tuple(_run(seed, end) for seed, end in enumerate(ends.get(place, ()), 1))  # type: ignore[call-overload]
        cells[place] = Cell(run.choices, (1, 2, 3), runs, plan.collapse.steps)
    return StudyMap(plan, list(cells.values()))


def _run(seed: int, end: float) -> MadeRun:
    metrics = {
        f"{names.MISMATCH}/low_prob_frac": np.full(50, 0.005 if end < 0.55 else 0.08),
        names.REWARD: np.linspace(0.3, end, 50), "inference_mismatch/abs_prob_diff_mean": np.full(50, 0.06),
        names.OUTSIDE: np.full(50, 0.012),
    }  # fmt: skip
    metrics[names.REWARD][-10:] = end
    return MadeRun(seed, False, end < 0.15, 100.0, metrics)


def test_the_page_has_what_the_committed_results_say(committed: StudyMap) -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert with_results(page, committed) == (page, []), "run `make study-page`"
    for name in PICTURES:
        assert f"(study/{name})" in page


def test_the_text_answers_most_claims() -> None:
    said = {name for name, _ in VERDICT.findall((ROOT / PAGE).read_text(encoding="utf-8"))}
    assert said == {claim.name for claim in CLAIMS}


def test_the_product_knows_what_the_committed_results_say(committed: StudyMap) -> None:
    assert evidence(committed) == (ROOT / EVIDENCE).read_text(encoding="utf-8"), "run `make study-page`"


def test_the_pictures_are_drawn_from_the_committed_results(committed: StudyMap, tmp_path: Path) -> None:
    draw(committed, tmp_path)
    for name in PICTURES:
        with Image.open(tmp_path / name) as drawn, Image.open(ROOT / RESULTS / name) as there:
            assert drawn.size == there.size, f"run `make study-page`: {name}"
            # Another matplotlib draws letters elsewhere.
            if there.info["Software"].startswith(f"Matplotlib version{matplotlib.__version__},"):
                assert np.array_equal(np.asarray(drawn), np.asarray(there)), f"run `make study-page`: {name}"


def test_a_plan_of_which_nothing_is_run_yet_has_a_page_and_pictures(plan: Plan, tmp_path: Path) -> None:
    study = _study(plan, {})
    assert summary(study).startswith("**0 of ") and "int3 weights, 4 updates: no trust region; DRPO" in summary(study)
    assert {claim.answer(study).verdict for claim in CLAIMS} == {NOT_MEASURED}
    assert json.loads(evidence(study)) == [] and len(cells_table(study).splitlines()) == 2
    draw(study, tmp_path)


def test_rare_tokens_are_counted_with_the_long_tail_and_without_it(plan: Plan) -> None:
    runs = {("int3", "u4", "surrogate"): [0.5, 0.5], ("int3_long_tail", "u4", "surrogate"): [0.6]}
    assert "Of the sampled tokens 0.5 % had μ ≤ 0.01, with the long tail 8 %." in summary(_study(plan, runs))


def test_a_plan_that_is_partly_run_says_what_is_missing(plan: Plan, tmp_path: Path) -> None:
    study = _study(plan, {("int3", "u4", "surrogate"): [0.5, 0.52, 0.51], ("int3", "u4", "drpo_0.2"): [0.1, 0.2]})
    text = summary(study)
    assert "**5 of " in text and "DRPO around μ, δ = 0.2 (2 of 3 seeds)" in text and "no trust region (" not in text
    assert "at the median, ±0.51 with 2 seeds." in text
    row = next(line for line in cells_table(study).splitlines() if "δ = 0.2" in line)
    assert row == (
        "| int3 weights, 4 updates | DRPO around μ, δ = 0.2 | 0.150 ± 0.635 | 2 of 3 | 1 | 0 | −0.360 [−0.868, +0.148] "
        "| [−0.400, −0.320] | 1.2 % |  |  |"
    )
    draw(study, tmp_path)


@pytest.mark.parametrize(
    ("tight", "verdict"),
    [
        ([0.1, 0.12, 0.14], SUPPORTED),
        ([0.6, 0.62, 0.64], REFUTED),
        ([0.1, 0.5, 0.7], UNDECIDED),
        ([0.1, 0.12], NOT_MEASURED),
        ([], NOT_MEASURED),
    ],
)
def test_a_claim_is_answered_by_the_interval_of_the_differences(plan: Plan, tight: list[float], verdict: str) -> None:
    base = {("int3", "u4", "surrogate"): [0.5, 0.51, 0.53]}
    study = _study(plan, {**base, ("int3", "u4", "drpo_0.2"): tight})
    answer = next(claim for claim in CLAIMS if claim.name == "M1").answer(study)
    assert (answer.verdict, answer.seeds) == (verdict, len(tight))
    assert with_verdicts(study, "It hurts (M1: not\nmeasured).")[0] == f"It hurts (M1: {verdict})."
    assert with_verdicts(study, "It hurts (M1:\nundecided).")[0] == f"It hurts (M1:\n{verdict})."
    changed = [] if verdict == SUPPORTED else [f"M1: {SUPPORTED}, now {verdict}"]
    assert with_verdicts(study, f"It hurts (M1: {SUPPORTED}).") == (f"It hurts (M1: {verdict}).", changed)


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ([0.1] * 5, SUPPORTED),
        ([0.5] * 5, REFUTED),
        ([0.1] * 3 + [0.5] * 2, UNDECIDED),
        ([0.5] * 3, UNDECIDED),  # one chance in eight
        ([0.1] * 2, NOT_MEASURED),
    ],
)
def test_that_most_runs_collapse_is_answered_by_the_sign_test(plan: Plan, ends: list[float], verdict: str) -> None:
    study = _study(plan, {("int3", "u4", "surrogate"): ends})
    assert next(claim for claim in CLAIMS if claim.name == "P5").answer(study).verdict == verdict


def test_all_methods_that_bind_count_where_all_are_said_to_do_harm(plan: Plan) -> None:
    claim = next(claim for claim in CLAIMS if claim.name == "M17")
    drpo = ("drpo_0.1", "drpo_0.2", "drpo_0.5", "drpo_adaptive", "mask_drpo_0.2_all")
    binding = (*drpo, "dppo_binary_tv", "cppo", "ipo")
    cells = {("int3", "u4", name): [0.3, 0.31, 0.32] for name in binding}
    cells["int3", "u4", "surrogate"] = [0.5] * 3
    assert claim.answer(_study(plan, cells)).verdict == NOT_MEASURED  # GRPO is not there
    for last, verdict in ((0.49, SUPPORTED), (0.51, REFUTED)):
        answer = claim.answer(_study(plan, {**cells, ("int3", "u4", "grpo_clip_higher"): [0.1, 0.2, last]}))
        assert (answer.verdict, answer.figure) == (verdict, f"{27 if last < 0.5 else 26} of 27 differences")


def test_a_delta_is_listed_by_what_it_is_of_the_mismatch(plan: Plan) -> None:
    study = _study(plan, {
        ("int3", "u4", "surrogate"): [0.5] * 3, ("int3", "u4", "drpo_12.5"): [0.5] * 3,
        ("int3", "u4", "drpo_0.2"): [0.1] * 3, ("int3", "u4", "drpo_decoupled_0.2"): [0.6] * 3,
    })  # fmt: skip
    assert deltas_table(study).splitlines()[2:] == [
        "| int3 weights, 4 updates | 0.060 | 0.2 | 3.3 | −0.400 [−0.400, −0.400] | 3 of 3 |",
        "| int3 weights, 4 updates | 0.060 | 12.5 | 208 | 0 [0, 0] | 0 of 3 |",
    ]


def test_a_fall_is_one_from_the_first_steps_of_the_same_run(plan: Plan) -> None:
    claim = next(claim for claim in CLAIMS if claim.name == "P11")
    for ends, verdict in (([0.2, 0.21, 0.22], SUPPORTED), ([0.5, 0.52, 0.54], REFUTED), ([0.2], NOT_MEASURED)):
        assert claim.answer(_study(plan, {("fp8", "u16", "surrogate"): ends})).verdict == verdict
    assert claim.answer(_study(plan, {})) == claim.answer(_study(plan, {("fp8", "u16", "surrogate"): []}))


def test_the_loss_without_mismatch_counts_against_a_claim_about_mismatch(plan: Plan) -> None:
    cells = {("int3", "u4", "surrogate"): [0.5] * 3, ("int3", "u4", "drpo_0.2"): [0.1, 0.11, 0.12],
             ("fp32", "u4", "surrogate"): [0.5] * 3}  # fmt: skip
    claim = next(claim for claim in CLAIMS if claim.name == "M4")
    assert claim.answer(_study(plan, cells)).verdict == NOT_MEASURED
    assert claim.answer(_study(plan, {**cells, ("fp32", "u4", "drpo_0.2"): [0.5] * 3})).verdict == SUPPORTED
    assert claim.answer(_study(plan, {**cells, ("fp32", "u4", "drpo_0.2"): [0.1] * 3})).verdict != SUPPORTED


@pytest.mark.parametrize(
    ("loose", "verdict"),
    [([0.5, 0.52, 0.53], SUPPORTED), ([0.62, 0.63, 0.65], REFUTED), ([0.4, 0.52, 0.65], UNDECIDED)],
)
def test_methods_are_the_same_when_the_interval_is_within_the_margin(
    plan: Plan, loose: list[float], verdict: str
) -> None:
    study = _study(plan, {("int3", "u4", "surrogate"): [0.5, 0.51, 0.53], ("int3", "u4", "drpo_12.5"): loose})
    assert next(claim for claim in CLAIMS if claim.name == "D4").answer(study).verdict == verdict


def test_the_evidence_names_the_numbers_the_runs_and_what_each_delta_did(plan: Plan) -> None:
    study = _study(plan, {
        ("int3", "u4", "surrogate"): [0.5, 0.51, 0.53], ("int3", "u4", "drpo_0.2"): [0.1, 0.12, 0.14],
        ("int3", "u4", "drpo_12.5"): [0.5, 0.52, 0.53], ("int3", "u4", "drpo_1"): [0.2, 0.52, 0.53],
        ("int3", "u4", "drpo_decoupled_0.2"): [0.6, 0.61, 0.64], ("int3", "u4", "drpo_0.5"): [0.6, 0.61],
        ("int3", "u4", "grpo_clip_higher"): [0.2, 0.22, 0.24], ("int3", "u4", "mask_drpo"): [0.5, 0.52, 0.53],
    })  # fmt: skip
    assert json.loads(evidence(study)) == [{
        "rollout": "fp32, weights in int3 and back", "trainer": "fp32", "updates": 4, "mismatch": 0.06, "runs": 21,
        "found": {"mu": {"0.2": "hurts", "1": "undecided", "12.5": "same"}, "pi_old": {"0.2": "helps"}},
        "others": {"DRPO around μ, Mask-DRPO 12.5": "same", "GRPO 0.2/0.28": "hurts"},
    }]  # fmt: skip

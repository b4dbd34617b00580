"""The claims that docs/study.md answers, each computed from the committed results: supported, refuted or undecided."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.study_map import ASYNC, BASELINE, Difference, Setting, StudyMap, difference_of
from drpo_verl.metrics import names

SUPPORTED, REFUTED, UNDECIDED, NOT_MEASURED = "supported", "refuted", "undecided", "not measured"
FEWEST = 3
"""With fewer seeds than these nothing is concluded."""
MARGIN = 0.05
"""Rewards at the end that are less apart than this are called the same."""
LEVEL = 0.05
"""Of the sign test of claims about most runs."""

VERDICT = re.compile(rf"\b([MDSNPL]\d+):\s({SUPPORTED}|{REFUTED}|{UNDECIDED}|not\smeasured)\b")
"""How a page names a claim with its verdict."""


@dataclass(frozen=True)
class Answer:
    """What the results say about a claim.

    Attributes:
        verdict: supported, refuted, undecided or not measured.
        figure: what it rests on, in words.
        seeds: the number of seeds that it rests on.
    """

    verdict: str
    figure: str
    seeds: int


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        name: by which the text refers to it.
        text: the claim, as a sentence without a full stop.
        answer: what the results say about it.
    """

    name: str
    text: str
    answer: Callable[[StudyMap], Answer]


def number(value: float) -> str:
    """A difference of rewards, with its sign."""
    text = f"{value:+.3f}"
    return text.replace("-", "−") if text.strip("+-0.") else "0"


def between(interval: tuple[float, float] | None) -> str:
    """An interval in brackets; nothing without one."""
    return f"[{number(interval[0])}, {number(interval[1])}]" if interval else ""


def with_interval(difference: Difference | None) -> str:
    """A difference of rewards with its interval; nothing without one."""
    return f"{number(difference.mean)} {between(difference.interval)}" if difference else ""


def _judged(difference: Difference | None, judge: Callable[[Difference, float, float], str]) -> Answer:
    if difference is None:
        return Answer(NOT_MEASURED, "", 0)
    seeds = len(difference.values)
    if seeds < FEWEST or difference.interval is None:
        return Answer(NOT_MEASURED, f"{number(difference.mean)} so far", seeds)
    return Answer(judge(difference, *difference.interval), with_interval(difference), seeds)


def _below(_: Difference, low: float, high: float) -> str:
    return SUPPORTED if high < 0 else REFUTED if low > 0 else UNDECIDED


def _above(_: Difference, low: float, high: float) -> str:
    return SUPPORTED if low > 0 else REFUTED if high < 0 else UNDECIDED


def _same(difference: Difference, low: float, high: float) -> str:
    if low > -MARGIN and high < MARGIN:
        return SUPPORTED
    return REFUTED if low * high > 0 and abs(difference.mean) > MARGIN else UNDECIDED


Terms = Sequence[tuple[float, Setting, str]]


def _pair(setting: Setting, method: str, baseline: str) -> Terms:
    return [(1.0, setting, method), (-1.0, setting, baseline)]


def _contrast(judge: Callable[[Difference, float, float], str], terms: Terms) -> Callable[[StudyMap], Answer]:
    return lambda study: _judged(study.contrast(terms), judge)


def _collapses(setting: Setting, method: str) -> Callable[[StudyMap], Answer]:
    """Whether most runs of a cell collapse, by the sign test: how likely so many, or so few, are if half of all do."""

    def answer(study: StudyMap) -> Answer:
        cell = study.cell(setting, method)
        if cell is None or not cell.finished:
            return Answer(NOT_MEASURED, "", 0)
        seeds = len(cell.finished)
        so_many, so_few = _tail(cell.collapsed, seeds), _tail(seeds - cell.collapsed, seeds)
        verdict = SUPPORTED if so_many <= LEVEL else REFUTED if so_few <= LEVEL else UNDECIDED
        return Answer(verdict if seeds >= FEWEST else NOT_MEASURED, f"{cell.collapsed} of {seeds} runs", seeds)

    return answer


def _tail(least: int, runs: int) -> float:
    """The probability that at least so many of these runs do what half of all do."""
    return sum(math.comb(runs, count) for count in range(least, runs + 1)) / 2**runs


def _against_start(
    setting: Setting, method: str, judge: Callable[[Difference, float, float], str]
) -> Callable[[StudyMap], Answer]:
    """A cell's reward at the end less that of as many steps at the beginning, seed by seed."""

    def answer(study: StudyMap) -> Answer:
        cell = study.cell(setting, method)
        runs = cell.finished if cell is not None else ()
        starts = {run.seed: run.mean(names.REWARD, slice(study.plan.collapse.steps)) for run in runs}
        ends = cell.ends if cell is not None else {}
        return _judged(difference_of([ends[seed] - starts[seed] for seed in ends]), judge)

    return answer


def _each_below(setting: Setting, methods: Sequence[str]) -> Callable[[StudyMap], Answer]:
    """Whether each of several methods ends below no trust region at each seed."""

    def answer(study: StudyMap) -> Answer:
        pairs = [each for method in methods if (each := study.difference(setting, method)) is not None]
        values = [value for each in pairs for value in each.values]
        if len(pairs) < len(methods):
            return Answer(NOT_MEASURED, "", 0)
        below, seeds = sum(value < 0 for value in values), min(len(each.values) for each in pairs)
        verdict = SUPPORTED if below == len(values) else REFUTED
        return Answer(verdict if seeds >= FEWEST else NOT_MEASURED, f"{below} of {len(values)} differences", seeds)

    return answer


def _alike(setting: Setting, digits: int) -> Callable[[StudyMap], Answer]:
    """Whether every method ends at each seed with the same reward as the one without a trust region."""

    def answer(study: StudyMap) -> Answer:
        methods = [method.name for method, _ in study.made(setting) if method.name != BASELINE]
        pairs = [each for method in methods if (each := study.difference(setting, method)) is not None]
        values = [value for each in pairs for value in each.values]
        if not values:
            return Answer(NOT_MEASURED, "", 0)
        largest, seeds = max(map(abs, values)), min(len(each.values) for each in pairs)
        verdict = SUPPORTED if largest < 0.5 * 10**-digits else REFUTED
        figure = f"at most {largest:.4f} apart, {len(pairs) + 1} methods"
        return Answer(verdict if seeds >= FEWEST else NOT_MEASURED, figure, seeds)

    return answer


INT3, INT4, FP8_KV, FP32 = (Setting(each, "u4") for each in ("int3", "int4", "fp8_kv", "fp32"))
STALE, FRESH, ASYNCHRONOUS = Setting("fp8", "u16"), Setting("fp32", "u1"), Setting("int3", ASYNC)
STALE_ALONE, LONG_TAIL = Setting("fp32", "u16"), Setting("int3_long_tail", "u4")

_WITH_DECOUPLED = (FP32, FP8_KV, INT4, INT3, LONG_TAIL, ASYNCHRONOUS, STALE)
_TIGHT, _DECOUPLED, _LOOSE = "drpo_0.2", "drpo_decoupled_0.2", "drpo_12.5"

CLAIMS = (
    Claim("M1", f"{INT3}: DRPO 0.2 around μ ends below no trust region",
          _contrast(_below, _pair(INT3, _TIGHT, BASELINE))),
    Claim("M2", f"{INT3}: DRPO 0.2 around μ ends below DRPO 0.2 from π_old",
          _contrast(_below, _pair(INT3, _TIGHT, _DECOUPLED))),
    Claim("M3", f"{INT3}: DRPO 0.2 around μ collapses in most runs", _collapses(INT3, _TIGHT)),
    Claim("M4", f"The mismatch does it: what DRPO 0.2 around μ loses against no trust region is more with {INT3} than "
          f"with {FP32}",
          _contrast(_below, [*_pair(INT3, _TIGHT, BASELINE),
                             *((-weight, *rest) for weight, *rest in _pair(FP32, _TIGHT, BASELINE))])),
    Claim("M5", f"{INT3}: around μ, δ = 0.5 ends below δ = 12.5", _contrast(_below, _pair(INT3, "drpo_0.5", _LOOSE))),
    Claim("M6", f"{INT3}: around μ, δ = 0.2 ends below δ = 0.5",
          _contrast(_below, _pair(INT3, _TIGHT, "drpo_0.5"))),
    Claim("M7", f"{INT4}: DRPO 0.2 around μ ends below no trust region",
          _contrast(_below, _pair(INT4, _TIGHT, BASELINE))),
    Claim("M8", f"{FP8_KV}: DRPO 0.1 around μ ends below no trust region",
          _contrast(_below, _pair(FP8_KV, "drpo_0.1", BASELINE))),
    Claim("M9", f"{INT3}: DRPO 0.2 from π_old ends above no trust region",
          _contrast(_above, _pair(INT3, _DECOUPLED, BASELINE))),
    Claim("M10", f"{FP32}: DRPO 0.2 around μ ends where no trust region does",
          _contrast(_same, _pair(FP32, _TIGHT, BASELINE))),
    Claim("M11", f"{INT3}: Mask-DRPO 0.2 without a region, which strengthens no token, ends below no trust region",
          _contrast(_below, _pair(INT3, "mask_drpo_0.2_all", BASELINE))),
    Claim("M12", f"{INT3}: DRPO 0.5 around μ ends below no trust region",
          _contrast(_below, _pair(INT3, "drpo_0.5", BASELINE))),
    Claim("M13", f"{INT3}: DRPO 0.2 around μ ends below a mask at the same δ (DPPO-TV 0.2)",
          _contrast(_below, _pair(INT3, _TIGHT, "dppo_binary_tv"))),
    *(
        Claim(name, f"{setting}: DRPO 0.2 around μ ends below DRPO 0.2 from π_old",
              _contrast(_below, _pair(setting, _TIGHT, _DECOUPLED)))
        for name, setting in (("M14", FP8_KV), ("M15", INT4), ("M16", ASYNCHRONOUS))
    ),
    Claim("M18", f"{INT4}: DRPO 0.1 around μ ends below no trust region",
          _contrast(_below, _pair(INT4, "drpo_0.1", BASELINE))),
    Claim("M19", f"{FP8_KV}: DRPO 0.05 around μ ends below no trust region",
          _contrast(_below, _pair(FP8_KV, "drpo_0.05", BASELINE))),
    Claim("M20", f"The mismatch does it: what DRPO 0.05 around μ loses against no trust region is more with {FP8_KV} "
          f"than with {FP32}",
          _contrast(_below, [*_pair(FP8_KV, "drpo_0.05", BASELINE),
                             *((-weight, *rest) for weight, *rest in _pair(FP32, "drpo_0.05", BASELINE))])),
    Claim("M21", "On average over all settings in which it was run, DRPO 0.2 from π_old ends above no trust region",
          _contrast(_above, [(weight / len(_WITH_DECOUPLED), *rest) for setting in _WITH_DECOUPLED
                             for weight, *rest in _pair(setting, _DECOUPLED, BASELINE)])),
    Claim("M22", f"{INT3}: around μ, δ = 0.1 ends below δ = 0.2",
          _contrast(_below, _pair(INT3, "drpo_0.1", _TIGHT))),
    Claim("M23", f"{INT3}: DRPO 0.2 around μ ends below GRPO 0.2/0.28, which takes away as much gradient",
          _contrast(_below, _pair(INT3, _TIGHT, "grpo_clip_higher"))),
    Claim("M24", f"{INT3}: DRPO 0.05 from π_old ends above DRPO 0.1 around μ",
          _contrast(_above, _pair(INT3, "drpo_decoupled_0.05", "drpo_0.1"))),
    Claim("M17", f"{INT3}: each method with a boundary around μ that binds ends below no trust region at each seed",
          _each_below(INT3, ("drpo_0.1", _TIGHT, "drpo_0.5", "drpo_adaptive", "mask_drpo_0.2_all", "dppo_binary_tv",
                             "cppo", "ipo", "grpo_clip_higher"))),
    *(
        Claim(f"D{place}", f"{setting}: DRPO 12.5 ends where no trust region does",
              _contrast(_same, _pair(setting, _LOOSE, BASELINE)))
        for place, setting in enumerate((FP32, FP8_KV, INT4, INT3, STALE), 1)
    ),
    *(
        Claim(f"S{place}", f"{STALE}: {label} ends above no trust region",
              _contrast(_above, _pair(STALE, method, BASELINE)))
        for place, (method, label) in enumerate(
            {"dppo_binary_tv": "DPPO-TV 0.2", "grpo_clip_higher": "GRPO 0.2/0.28", "drpo_0.5": "DRPO 0.5 around μ",
             "drpo_0.1": "DRPO 0.1 around μ", _DECOUPLED: "DRPO 0.2 from π_old"}.items(), 1)
    ),
    Claim("S6", f"{ASYNCHRONOUS}: DRPO 0.2 around μ ends below no trust region",
          _contrast(_below, _pair(ASYNCHRONOUS, _TIGHT, BASELINE))),
    Claim("S7", f"{ASYNCHRONOUS}: DRPO 0.2 from π_old ends above no trust region",
          _contrast(_above, _pair(ASYNCHRONOUS, _DECOUPLED, BASELINE))),
    Claim("N1", f"{FRESH}: all methods end alike to the third digit", _alike(FRESH, 3)),
    Claim("N2", f"{FP32}: DRPO 0.2 ends where it does from π_old",
          _contrast(_same, _pair(FP32, _TIGHT, _DECOUPLED))),
    Claim("P1", f"{INT3}: clipping the ratio (GRPO) ends below DRPO 12.5",
          _contrast(_below, _pair(INT3, "grpo_clip_higher", _LOOSE))),
    Claim("P2", f"{INT3}: truncating the ratio (PG-TIS, C = 1) ends below no truncation",
          _contrast(_below, _pair(INT3, "pg_tis_1", BASELINE))),
    Claim("P3", f"{INT3}: a mask around μ (DPPO-TV 0.2) ends above no trust region",
          _contrast(_above, _pair(INT3, "dppo_binary_tv", BASELINE))),
    Claim("P4", f"{INT3}: DRPO 12.5 ends above DPPO-TV 0.2",
          _contrast(_above, _pair(INT3, _LOOSE, "dppo_binary_tv"))),
    Claim("P5", f"{INT3}: no trust region collapses in most runs", _collapses(INT3, BASELINE)),
    Claim("P6", f"{STALE}: no trust region collapses in most runs", _collapses(STALE, BASELINE)),
    Claim("P11", f"{STALE}: no trust region ends below its own first ten steps",
          _against_start(STALE, BASELINE, _below)),
    *(
        Claim(f"S{place}", f"{STALE}: {label} ends above its own first ten steps",
              _against_start(STALE, method, _above))
        for place, (method, label) in enumerate(
            {"grpo_clip_higher": "GRPO 0.2/0.28", "dppo_binary_tv": "DPPO-TV 0.2"}.items(), 8)
    ),
    *(
        Claim(f"S{place}", f"{STALE_ALONE}: {label} ends above no trust region",
              _contrast(_above, _pair(STALE_ALONE, method, BASELINE)))
        for place, (method, label) in enumerate(
            {"dppo_binary_tv": "DPPO-TV 0.2", "grpo_clip_higher": "GRPO 0.2/0.28"}.items(), 10)
    ),
    Claim("S12", f"{STALE_ALONE}: no trust region ends below its own first ten steps",
          _against_start(STALE_ALONE, BASELINE, _below)),
    Claim("P7", f"{INT3}: a distance from π_old (DRPO 0.2) collapses in most runs", _collapses(INT3, _DECOUPLED)),
    Claim("P8", f"{INT3}: CPPO ends above DPPO-TV 0.2",
          _contrast(_above, _pair(INT3, "cppo", "dppo_binary_tv"))),
    *(
        Claim(name, f"{INT3}: {label} ends below no trust region", _contrast(_below, _pair(INT3, method, BASELINE)))
        for name, method, label in (("P12", "cppo", "CPPO"), ("P13", "ipo", "IPO"),
                                    ("P14", "grpo_clip_higher", "clipping the ratio (GRPO)"))
    ),
    Claim("P15", f"{INT3}: clipping the ratio (GRPO) ends below a mask by probability (DPPO-TV 0.2)",
          _contrast(_below, _pair(INT3, "grpo_clip_higher", "dppo_binary_tv"))),
    Claim("P9", f"{INT3}: Mask-DRPO ends where DRPO 12.5 does", _contrast(_same, _pair(INT3, "mask_drpo", _LOOSE))),
    Claim("P10", f"{INT3}: DRPO 2.5 ends where DRPO 12.5 does", _contrast(_same, _pair(INT3, "drpo_2.5", _LOOSE))),
    Claim("L1", f"{LONG_TAIL}: clipping the ratio (GRPO) ends below no trust region",
          _contrast(_below, _pair(LONG_TAIL, "grpo_clip_higher", BASELINE))),
    Claim("L2", f"{LONG_TAIL}: clipping the ratio (GRPO) ends below a mask by probability (DPPO-TV 0.2)",
          _contrast(_below, _pair(LONG_TAIL, "grpo_clip_higher", "dppo_binary_tv"))),
    Claim("L3", f"{LONG_TAIL}: a mask by probability (DPPO-TV 0.2) ends where no trust region does",
          _contrast(_same, _pair(LONG_TAIL, "dppo_binary_tv", BASELINE))),
    Claim("L4", f"{LONG_TAIL}: DRPO 0.2 around μ ends below no trust region",
          _contrast(_below, _pair(LONG_TAIL, _TIGHT, BASELINE))),
    Claim("L5", f"{LONG_TAIL}: DRPO 12.5 ends where no trust region does",
          _contrast(_same, _pair(LONG_TAIL, _LOOSE, BASELINE))),
    Claim("L6", f"{LONG_TAIL}: DRPO 0.2 from π_old ends above DRPO 0.2 around μ",
          _contrast(_above, _pair(LONG_TAIL, _DECOUPLED, _TIGHT))),
)  # fmt: skip
"""M: a mismatch of the engines. D: what delta = 12.5 does. S: staleness. N: neither. P: what the papers report. L: a
long tail of rare tokens."""


def claims_table(study: StudyMap) -> str:
    """All claims with what the results say, as a table in Markdown."""
    lines = ["| | claim | verdict | difference of the rewards at the end | seeds |", "|---|---|---|---|---|"]
    kinds = list(dict.fromkeys(claim.name[0] for claim in CLAIMS))
    for claim in sorted(CLAIMS, key=lambda claim: (kinds.index(claim.name[0]), int(claim.name[1:]))):
        answer = claim.answer(study)
        lines.append(f"| {claim.name} | {claim.text} | {answer.verdict} | {answer.figure} | {answer.seeds or ''} |")
    return "\n".join(lines)


def with_verdicts(study: StudyMap, page: str) -> tuple[str, list[str]]:
    """A page whose text gives each claim the verdict that the results do.

    Args:
        study: the results.
        page: Markdown in which claims are named with their verdict, as ``M1: supported``.

    Returns:
        The page, and each verdict in it that was another one, as ``M1: not measured, now supported``.

    Raises:
        KeyError: when it names a claim that there is not.
    """
    right = {claim.name: claim.answer(study).verdict for claim in CLAIMS}
    given = [(name, said.replace("\n", " ")) for name, said in VERDICT.findall(page)]
    changed = [f"{name}: {said}, now {right[name]}" for name, said in given if said != right[name]]

    def corrected(match: re.Match[str]) -> str:
        name_and_space = match[0][: match.start(2) - match.start()]  # a line may end between them
        return name_and_space + right[match[1]]

    return VERDICT.sub(corrected, page), changed

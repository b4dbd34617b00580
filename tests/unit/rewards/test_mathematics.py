"""The reward of mathematics: what counts as an answer, what as right, and that no text can hang or break it."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpo_verl.rewards import judge, mathematics
from drpo_verl.rewards.extraction import extract
from drpo_verl.rewards.judge import Judge
from drpo_verl.rewards.reward import compute_score


@pytest.fixture(scope="module", autouse=True)
def _started() -> None:
    # What starting a process takes is not what a test is about.
    assert mathematics.agree(r"\frac{2}{4}", r"\frac{1}{2}")


def score(response: str, truth: str, source: str = "math_dapo") -> float:
    return compute_score(data_source=source, solution_str=response, ground_truth=truth, extra_info={"index": 0})


def test_an_empty_truth_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the ground truth is empty.*'aime24'"):
        score(r"\boxed{1}", " ", "aime24")


HOSTILE = [
    "9" * 100_000,
    r"\boxed{" * 20_000,
    r"\boxed{" * 20_000 + "1" + "}" * 20_000,
    r"\boxed{" + "(" * 200 + "1" + ")" * 200 + "}",
    r"\boxed{" + "{" * 5_000 + "}" * 5_000 + "}",
    r"\boxed{" + r"\frac{1}{" * 60 + "2" + "}" * 60 + "}",
    "Answer: " * 30_000,
    "answer is " + " " * 100_000,
    "answer" + " " * 100_000 + "x" + "answer" * 20_000,
    "$" * 100_000,
    r"answer: \(" * 20_000,
    "}" * 100_000,
    "\\" * 100_001,
    "\0\ud800 \\boxed{\0}",
]


@pytest.mark.parametrize("response", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_costs_little(response: str) -> None:
    start = time.perf_counter()
    assert score(response, "7") == 0.0
    assert time.perf_counter() - start < 3


EXPENSIVE = [
    "9^{9^{9^{9}}}",
    "9^9^9^9",
    "2^{10000000000}",
    "(10^{10^{10}})!",
    "100000000!",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n}",
    r"\binom{10^{9}}{500000000}",
    r"\operatorname{zeros}(100000, 100000)",
    r"7^{10^{9}} - 7^{10^{9}} + 8",
    r"\frac{100000000!}{99999999!}",
]


def test_what_takes_for_ever_is_wrong_and_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    mathematics._verdict.cache_clear()
    impatient = Judge(processes=2, seconds=2)
    monkeypatch.setattr(judge, "shared", lambda: impatient)
    try:
        assert score(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}") == 1.0
        start = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            scores = list(pool.map(lambda text: score(rf"\boxed{{{text}}}", "8"), EXPENSIVE))
        assert scores == [0.0] * len(EXPENSIVE)
        assert time.perf_counter() - start < 90
        mathematics._verdict.cache_clear()
        assert score(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}") == 1.0  # its killed processes are replaced
    finally:
        impatient.close()
        mathematics._verdict.cache_clear()


@pytest.fixture
def fresh_judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """One that has no process yet, and verdicts that are not known yet."""
    fresh = Judge(processes=1, seconds=60)
    monkeypatch.setattr(judge, "shared", lambda: fresh)
    mathematics._verdict.cache_clear()
    yield fresh
    fresh.close()
    mathematics._verdict.cache_clear()


def test_a_package_missing_in_the_judges_process_is_no_wrong_answer(
    fresh_judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "latex2sympy2_extended.py").write_text("raise ImportError('no antlr4')")
    monkeypatch.syspath_prepend(tmp_path)  # a spawned process gets the path; here the module is imported already
    with pytest.raises(ImportError, match=r"needs math-verify.*\(no antlr4\).*every node: pip install math-verify"):
        score(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}")


def test_the_reward_of_verl_does_not_load_without_its_package() -> None:
    without = "import sys; sys.modules['latex2sympy2_extended'] = None; import drpo_verl.rewards.reward"
    run = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False)
    last = run.stderr.splitlines()[-1]  # all that is shown of a worker's error
    assert run.returncode and last.startswith("ImportError: the reward needs math-verify") and "pip install" in last


def test_only_verdicts_are_remembered(fresh_judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(function: object, *arguments: str) -> bool:
        asked.append(arguments)
        if len(asked) == 1:
            raise judge.AnswerError("busy")
        return True

    monkeypatch.setattr(fresh_judge, "ask", ask)
    scores = [score(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}") for _ in range(3)]
    assert scores == [0.0, 1.0, 1.0] and len(asked) == 2


CODE = [
    "__import__('os').system('touch {}')",
    r"\text{{__import__('os').system('touch {}')}}",
    "exec(open('{}','w'))",
    "eval(\"open('{}','w')\")",
    "lambda: open('{}','w')",
]


@pytest.mark.parametrize("code", CODE)
def test_an_answer_is_never_code(code: str, tmp_path: object) -> None:
    file = f"{tmp_path}/proof"
    text = code.format(file)
    for response in (rf"\boxed{{{text}}}", f"Answer: {text}"):
        assert score(response, "0") == 0.0
    import os

    assert not os.path.exists(file)


def test_works_in_threads_as_verl_calls_it() -> None:
    # As verl's naive reward manager does it: not a coroutine function, so in the loop's executor, by keywords.
    assert not inspect.iscoroutinefunction(compute_score)

    async def ask() -> list[float]:
        loop = asyncio.get_running_loop()
        calls = [
            partial(compute_score, data_source="math_dapo", solution_str=rf"\boxed{{{n}/2}}",
                    ground_truth=rf"\frac{{{n}}}{{2}}", extra_info={"num_turns": 2, "rollout_reward_scores": {}})
            for n in range(1, 24, 2)
        ]  # fmt: skip
        return await asyncio.gather(*(loop.run_in_executor(None, call) for call in calls))

    assert asyncio.run(ask()) == [1.0] * 12
    assert threading.active_count() < 60


pieces = st.sampled_from(
    [r"\boxed{", "}", "{", "33", "-", "Answer:", "answer is", "$", r"\frac", "{1}", "^", "!", ",", " ", "\n",
     "</think>", r"\text{", r"\left(", ")", "=", "x", r"\sqrt", "%", r"\{"]
)  # fmt: skip


@settings(max_examples=150)
@given(st.one_of(st.text(max_size=200), st.lists(pieces, max_size=14).map("".join)))
def test_any_text_scores_zero_or_one(response: str) -> None:
    value = score(response, "33")
    assert value in (0.0, 1.0)
    if value:
        assert extract(response) is not None


@settings(max_examples=200)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_agrees_with_integer_equality(answer: int, truth: int) -> None:
    for response in (rf"\boxed{{{answer}}}", f"Answer: {answer}", rf"Answer: ${answer:,}$"):
        assert score(response, str(truth)) == float(answer == truth)
        assert score(response, str(answer)) == 1.0


@settings(max_examples=40)
@given(st.integers(-50, 50), st.integers(1, 30), st.integers(1, 9))
def test_fractions_by_value(numerator: int, denominator: int, factor: int) -> None:
    sign = "-" if numerator < 0 else ""
    written = rf"{sign}\frac{{{abs(numerator) * factor}}}{{{denominator * factor}}}"
    truth = rf"{sign}\frac{{{abs(numerator)}}}{{{denominator}}}"
    assert score(rf"\boxed{{{written}}}", truth) == 1.0
    assert score(rf"\boxed{{{written}}}", rf"\frac{{{numerator + 1}}}{{{denominator}}}") == 0.0

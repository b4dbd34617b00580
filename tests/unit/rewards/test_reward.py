"""The reward accepts one committed, right number and nothing else, in any thread, for any text."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpo_verl.rewards.reward import compute_score, extract_answer


def score(response: str, truth: str = "46") -> float:
    return compute_score("drpo_verl/arithmetic", response, truth)


@pytest.mark.parametrize(
    "response",
    [
        "46",
        " 46\n",
        "46.",
        "46.0",
        "046",
        "+46",
        "$46$",
        "**46**",
        "12+34=46",
        "12 + 34 = 46.",
        "The answer is 46.",
        "the answer is: 46",
        "Answer: **46**",
        r"so \boxed{46}, I think",
        r"\boxed{45} no, \boxed{46}",
    ],
)
def test_right_answers(response: str) -> None:
    assert score(response) == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "45",
        "-46",
        "4 6",
        "12+34",  # right by value, but nothing was computed
        "92/2",
        "46 or 45",
        "45, 46",
        "46%",
        "1e9",
        "46.0000001",  # math-verify would round it to 46
        "46 apples and 3 pears",
        "I have 46",
        "46=",
        "46 = 45",
        r"\boxed{46",
        r"\boxed{12+34}",
        r"46 \boxed{45}",
        "\uff14\uff16",  # full-width digits, which int() would take
        "\u0664\u0666",  # Arabic-Indic digits, likewise
        "<|assistant|>46",
        "46" * 100,
    ],
)
def test_other_responses(response: str) -> None:
    assert score(response) == 0.0


def test_signs_zero_and_separators() -> None:
    assert score("-22", "-22") == 1.0
    assert score("22", "-22") == 0.0
    assert score("-0", "0") == 1.0
    assert score("1,046", "1046") == 1.0
    assert score("1,046", "46") == 0.0


def test_a_ground_truth_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="ground truth must be a number"):
        score("46", "forty-six")


def test_arguments_verl_may_add_are_ignored() -> None:
    assert compute_score("drpo_verl/arithmetic", "46", "46", {"index": 0}, reward_router_address=None) == 1.0


@pytest.mark.parametrize(
    "response", ["9**9**9**9", "9^9^9^9", "= 9**9**9", r"\boxed{9**9**9}", "(" * 50_000, "=" * 50_000]
)
def test_expensive_text_costs_nothing(response: str) -> None:
    start = time.perf_counter()
    assert score(response) == 0.0
    assert time.perf_counter() - start < 0.5  # evaluated, the first one would not end


def test_works_in_a_thread() -> None:
    scores: list[float] = []
    # numbers no other test uses, so that no cached comparison hides math-verify's use of signals
    thread = threading.Thread(target=lambda: scores.extend([score("123454", "123454"), score("123453", "123454")]))
    thread.start()
    thread.join()
    assert scores == [1.0, 0.0]


pieces = st.sampled_from(
    ["46", "-", "=", r"\boxed{", "}", "{", "answer is", "$", "**", ".", ",", " ", "\n", "9**9", "1e9"]
)


@settings(max_examples=200)
@given(st.one_of(st.text(), st.lists(pieces, max_size=12).map("".join)))
def test_any_text_scores_zero_or_one(response: str) -> None:
    value = score(response)
    assert value in (0.0, 1.0)
    if value:
        literal = extract_answer(response)
        assert literal is not None
        assert float(literal.replace(",", "")) == 46


@settings(max_examples=100)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_agrees_with_integer_equality(answer: int, truth: int) -> None:
    assert score(str(answer), str(truth)) == float(answer == truth)
    assert score(f"{answer:,}", str(answer)) == 1.0

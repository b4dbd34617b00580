"""What a response commits to."""

from __future__ import annotations

import time

import pytest

from drpo_verl.rewards.extraction import boxed, extract


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{46}.", "46"),
        (r"\boxed{45}, no: \boxed{46}", "46"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),  # an escaped brace closes nothing
        (r"\fbox{3} \fboxed{4}", "4"),
        (r"\boxed -5.", "-5"),
        (r"$\boxed 46$", "46"),
        (r"\boxed\frac12", r"\frac12"),
        (r"\boxed{\boxed{46}}", "46"),
        (r"\boxed{46}. I have put it in \boxed{}.", "46"),
        (r"\boxed{46}. I have put it in a \boxed form.", "46"),
        (r"\boxed{1}, \boxed{2} and $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{45} \quad \text{or} \quad \boxed{46}", "45, 46"),
        (r"\boxed{46}, \boxed{46}", "46"),
        ("<think>\\boxed{1}</think> Answer: 2", "2"),
        ("<think>\\boxed{1}</think> I do not know", None),
        ("Answer: $33$", "33"),
        ("**Answer:** 33", "33"),
        ("*Answer*: **33**", "33"),
        (r"\textbf{Answer:} 33", "33"),
        (r"\[\text{Answer: } 33\]", "33"),
        ("The final answer is $\\frac12$. I hope it is correct.", "\\frac12"),
        ("The answer is 46. I hope it is correct.", "46"),
        ("The answer is: \\(x+1\\).", "x+1"),
        ("The answer is 3.14. Done", "3.14"),
        ("Answer: 1\nAnswer: 2\n\nthank you", "2"),
        ("Answer:\n5", "5"),
        ("Answer:\n\n$$\nx = 46\n$$\n", "x = 46"),
        ("Answer: \\begin{equation*}\n46.\n\\end{equation*}", "46"),
        ("Answer: 46. No, the answer is 45.", "45"),  # the last commitment counts
        ("Answer: 46\nThis answer is greater than 45", "46"),
        ("Answer: $46$ or $45$", "46 or 45"),  # no 46
        ("Answer: 46. Or 45", "46. Or 45"),
        ("Answer: $1$, $2$ and $3$", "1, 2 and 3"),
        ("Answer: $46$ apples", r"46\text{ apples}"),
        ("Answer: 46 apples", r"46\text{ apples}"),
        ("Answer: Monday", "Monday"),
        ("Final Answer: The final answer is $46$. I hope it is correct.", "46"),
        ("**Answer:** The answer is Monday.", "Monday"),
        ("x = 5, hence 33", None),
        ("the answers: 5", None),
        (r"\boxed{46", None),
        (r"\boxed{46} and \boxed{4", None),
        (r"\boxed{", None),
        (r"\boxed{}", None),
        ("", None),
        ("Answer:", None),
    ],
)
def test_what_a_response_commits_to(response: str, answer: str | None) -> None:
    assert extract(response) == answer


def test_no_box_differs_from_one_that_is_never_closed() -> None:
    assert boxed("46") is None and boxed(r"\boxed{46") == ""


HOSTILE = [
    r"\boxed{" * 20_000,
    r"\boxed{" * 20_000 + "1" + "}" * 20_000,
    r"\boxed{}" * 20_000,
    r"\boxed{1}, " * 20_000,
    r"\boxed " * 20_000,
    "Answer: " * 30_000,
    "answer is " + " " * 100_000,
    "answer" + " " * 100_000 + "x" + "answer" * 20_000,
    "answer:" + "*" * 100_000,
    "$" * 100_000,
    r"answer: \(" * 20_000,
    r"answer: \[" * 20_000,
    "Answer: " + ". A" * 50_000 + "1",
    "Answer: " + "$1$" * 30_000,
]


@pytest.mark.parametrize("response", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_costs_little(response: str) -> None:
    start = time.process_time()
    extract(response)
    assert time.process_time() - start < 2

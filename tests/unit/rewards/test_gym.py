"""reasoning-gym's scorers decide, except those that evaluate what the model wrote."""

from __future__ import annotations

import json
import sys

import pytest

from drpo_verl.rewards import gym, judge
from drpo_verl.rewards.reward import compute_score

# In 0.1.25, by reading it: with eval or sympy's parse_expr, on the answer.
ON_THE_ANSWER = {
    "string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "simple_integration", "intermediate_integration",
    "polynomial_multiplication", "puzzle24", "countdown",
}  # fmt: skip
# And on their own problem.
ON_THE_PROBLEM = {"number_sorting", "bitwise_arithmetic"}


def test_scorers_that_evaluate_text_are_found() -> None:
    assert {task for task in gym.tasks() if gym.evaluates_answers(task)} == ON_THE_ANSWER | ON_THE_PROBLEM


def score(task: str, response: str, item: dict[str, object]) -> float:
    return compute_score(f"reasoning_gym/{task}", response, str(item["answer"]), {"entry": gym.pack(item)})


def test_the_tasks_own_scorer_decides() -> None:
    item = gym.load().create_dataset("chain_sum", seed=3, size=1)[0]
    right = item["answer"]
    assert score("chain_sum", f"Let me see. <answer>{right}</answer>", item) == 1.0
    assert score("chain_sum", f"<answer>0</answer><answer> {right}.00 </answer>", item) == 1.0
    assert score("chain_sum", f"<answer>{int(right) + 1}</answer>", item) == 0.0
    for response in (
        "",
        right,
        f"<answer>{right}",
        f"{right}</answer>",
        f"</answer>{right}<answer>",
        "<answer></answer>",
    ):
        assert score("chain_sum", response, item) == 0.0, response
    partial = score("chain_sum", f"<answer>{right} or so</answer>", item)
    assert 0.0 <= partial < 1.0


def test_problems_that_can_not_be_scored_are_errors() -> None:
    item = gym.load().create_dataset("countdown", seed=0, size=1)[0]
    with pytest.raises(ValueError, match="'countdown' evaluates the model's answer as code"):
        score("countdown", f"<answer>{item['answer']}</answer>", item)
    with pytest.raises(ValueError, match="no task 'nothing'"):
        score("nothing", "<answer>1</answer>", item)
    with pytest.raises(ValueError, match=r"no extra_info\.entry"):
        compute_score("reasoning_gym/chain_sum", "<answer>1</answer>", "1", {"index": 0})


@pytest.mark.parametrize("task", ["complex_arithmetic", "game_of_life_halting"])
def test_what_is_rewarded_for_nothing_is_not(task: str) -> None:
    items = gym.load().create_dataset(task, seed=0, size=8)
    assert any(gym._scorer(task)("nan", item) == 1.0 for item in items)  # by the scorer itself
    for item in items:
        assert score(task, f"<answer>{item['answer']}</answer>", item) == 1.0
        assert score(task, "<answer>nan</answer>", item) < 1.0
    halting = [item for item in items if item["answer"] == "True"]
    assert all(score(task, "<answer>perhaps</answer>", item) < 1.0 for item in halting)


def test_a_scorer_that_fails_on_an_answer_gives_nothing() -> None:
    assert gym.score_answer("chain_sum", "x", json.dumps({"question": "", "metadata": {}})) == 0.0


def test_a_missing_package_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def imports(answer: str, problem: object) -> float:
        raise ImportError("No module named 'something'")

    monkeypatch.setattr(gym, "_scorer", lambda task: imports)
    with pytest.raises(ImportError, match="something"):
        gym.score_answer("chain_sum", "x", json.dumps({"question": "", "metadata": {}}))
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"needs reasoning-gym.*pip install reasoning-gym"):
        compute_score("reasoning_gym/chain_sum", "<answer>1</answer>", "1", {"entry": "{}"})


def test_only_verdicts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    item = gym.load().create_dataset("chain_sum", seed=4, size=1)[0]
    outcomes: list[Exception | float] = [judge.AnswerError("busy"), ImportError("reasoning-gym"), 1.0]

    class Judge:
        def ask(self, function: object, *arguments: str) -> float:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    monkeypatch.setattr(judge, "shared", Judge)
    gym._verdict.cache_clear()
    right = f"<answer>{item['answer']}</answer>"
    assert score("chain_sum", right, item) == 0.0
    with pytest.raises(ImportError):
        score("chain_sum", right, item)
    assert [score("chain_sum", right, item) for _ in range(2)] == [1.0, 1.0]
    gym._verdict.cache_clear()

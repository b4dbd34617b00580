"""Problems are right, reproducible, and their splits disjoint; the parquet files are what verl reads."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drpo_verl.rewards.arithmetic import (
    DATA_SOURCE,
    Difficulty,
    Problem,
    make_problems,
    render_chat,
    render_prompt,
    split_of,
    write_parquet,
)
from drpo_verl.rewards.reward import compute_score


@pytest.mark.parametrize(
    "difficulty",
    [
        Difficulty(),
        Difficulty(min_terms=2, max_terms=4, min_digits=1, max_digits=3),
        Difficulty(generator="products", min_digits=1),
        Difficulty(subtraction=False),
    ],
)
def test_answers_are_right(difficulty: Difficulty) -> None:
    for problem in make_problems("train", 50, difficulty=difficulty):
        assert set(problem.expression) <= set("0123456789+-*")
        assert eval(problem.expression) == int(problem.answer)  # digits and operators, as just checked


def test_subtraction_can_be_left_out() -> None:
    sums = make_problems("train", 200, seed=1, difficulty=Difficulty(max_terms=3, subtraction=False))
    assert not any("-" in p.expression for p in sums)
    # a filter and nothing else: the problems that remain, and their order, are those of the whole difficulty
    both = make_problems("train", 1000, seed=1, difficulty=Difficulty(max_terms=3))
    assert [p for p in both if "-" not in p.expression][:200] == sums


def test_seed_decides() -> None:
    assert make_problems("train", 40, seed=3) == make_problems("train", 40, seed=3)
    # reasoning-gym's item i of seed s is item i-1 of seed s+1: neighbouring seeds must not share a shifted list
    assert len(set(make_problems("train", 40, seed=3)) & set(make_problems("train", 40, seed=4))) < 10


def test_no_duplicates_and_disjoint_splits_whatever_the_seed() -> None:
    drawn = {
        "train": make_problems("train", 3000, seed=0),
        "val": make_problems("val", 300, seed=0) + make_problems("val", 300, seed=9),
        "calibration": make_problems("calibration", 200, seed=4),
    }
    assert len(set(drawn["train"])) == 3000
    for split, problems in drawn.items():
        assert all(split_of(p.expression) == split for p in problems)


def test_split_shares() -> None:
    splits = [split_of(f"{a}+{b}") for a in range(10, 100) for b in range(10, 100)]
    assert splits.count("val") / len(splits) == pytest.approx(0.10, abs=0.01)
    assert splits.count("calibration") / len(splits) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test", "count": 1}, "split must be one of"),
        ({"split": "val", "count": 0}, "at least 1"),
        (
            {"split": "val", "count": 500, "difficulty": Difficulty(min_digits=1, max_digits=1)},
            "different 'val' problems",
        ),
    ],
)
def test_impossible_requests_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_problems(**arguments)


def test_prompt_styles() -> None:
    problem = Problem("47-35", "12")
    assert render_prompt(problem, "terse") == "47-35"
    assert render_prompt(problem, "natural") == "Calculate 47 - 35."
    for render in (render_prompt, render_chat):
        with pytest.raises(ValueError, match="style must be one of"):
            render(problem, "verse")  # type: ignore[arg-type]


def test_a_terse_chat_is_the_prompt_alone() -> None:
    assert render_chat(Problem("47-35", "12"), "terse") == [{"role": "user", "content": "47-35"}]


def test_a_natural_chat_begins_with_a_worked_example() -> None:
    assert render_chat(Problem("47-35", "12"), "natural") == [
        {"role": "user", "content": "Calculate 8 + 34."},
        {"role": "assistant", "content": "8 + 34 = 42"},
        {"role": "user", "content": "Calculate 47 - 35."},
    ]


def test_the_worked_example_is_rewarded_and_never_a_problem() -> None:
    example = render_chat(Problem("1+1", "2"), "natural")[1]["content"]
    expression, answer = example.replace(" ", "").split("=")
    assert eval(expression) == int(answer)
    assert compute_score(DATA_SOURCE, example, answer) == 1.0
    # problems have operands of one length, which this has not
    for difficulty in (Difficulty(), Difficulty(min_digits=1), Difficulty(max_terms=3, min_digits=1, max_digits=3)):
        for problem in make_problems("train", 500, difficulty=difficulty):
            assert len({len(operand) for operand in re.split("[+-]", problem.expression)}) == 1
    assert len({len(operand) for operand in re.split("[+-]", expression)}) > 1


def test_parquet_rows_are_what_verl_reads(tmp_path: Path) -> None:
    train, val = write_parquet(tmp_path / "data", n_train=30, n_val=10, seed=1, style="natural")
    assert (train.name, val.name) == ("train.parquet", "val.parquet")
    rows = {split: pq.read_table(path).to_pylist() for split, path in (("train", train), ("val", val))}
    assert (len(rows["train"]), len(rows["val"])) == (30, 10)
    problems = make_problems("train", 30, seed=1)
    assert rows["train"][7] == {
        "data_source": DATA_SOURCE,
        "prompt": render_chat(problems[7], "natural"),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problems[7].answer},
        "extra_info": {"index": 7, "split": "train", "style": "natural", "expression": problems[7].expression},
    }
    first = train.read_bytes()
    write_parquet(tmp_path / "data", n_train=30, n_val=10, seed=1, style="natural")
    assert train.read_bytes() == first

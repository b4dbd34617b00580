"""Arithmetic problems from reasoning-gym, split by expression, and their verl parquet files."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from drpo_verl.rewards import gym

Split = Literal["train", "val", "calibration"]
Style = Literal["terse", "natural"]
Generator = Literal["chain_sum", "products"]

DATA_SOURCE = "drpo_verl/arithmetic"

# Percent of all expressions kept out of "train". "calibration" steers the tiny policy's warm-up, so that the
# figure reported on "val" is one that nothing was tuned on.
_HELD_OUT_PERCENT: dict[Split, int] = {"val": 10, "calibration": 5}

# Consecutive draws without a new problem after which the space counts as exhausted (~2 s). Collecting the very last
# problem of the default space takes ~16,000 draws.
_MAX_DRY_DRAWS = 200_000


@dataclass(frozen=True)
class Problem:
    """One problem of arithmetic.

    Attributes:
        expression: without spaces, e.g. "12+34"; splits and duplicates go by it.
        answer: the decimal integer it evaluates to, e.g. "46" or "-22".
    """

    expression: str
    answer: str


# Operands of different lengths: no problem of any difficulty looks like this, so it gives no answer away.
_EXAMPLE = Problem(expression="8+34", answer="42")


@dataclass(frozen=True)
class Difficulty:
    """Which problems to generate: the settings of reasoning-gym's generators, and one that leaves out problems.

    All operands of one problem have the same number of digits. The default has 16,200 different problems: few enough
    to be learned in a minute on a CPU, and too many to be remembered from that minute.

    Attributes:
        generator: "chain_sum" (operators + and -) or "products" (*).
        min_terms: fewest operands.
        max_terms: most operands.
        min_digits: fewest digits of an operand.
        max_digits: most digits of an operand.
        subtraction: False leaves out the problems with a minus, so that 8,100 of the default's remain.
    """

    generator: Generator = "chain_sum"
    min_terms: int = 2
    max_terms: int = 2
    min_digits: int = 2
    max_digits: int = 2
    subtraction: bool = True


def split_of(expression: str) -> Split:
    """Return the split to which an expression belongs: train for 85 %, val for 10 % and calibration for 5 % of all.

    The expression alone decides: splits are disjoint whatever seeds, sizes and difficulties they are drawn with.
    """
    bucket = int.from_bytes(hashlib.sha256(expression.encode()).digest()[:4], "big") % 100
    for split, percent in _HELD_OUT_PERCENT.items():
        if bucket < percent:
            return split
        bucket -= percent
    return "train"


def make_problems(split: Split, count: int, *, seed: int = 0, difficulty: Difficulty | None = None) -> list[Problem]:
    """Draw `count` different problems of one split, in an order that depends on the seed alone.

    Raises:
        ValueError: unknown split, `count` below 1, or the difficulty's space seems to hold fewer problems than asked.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    difficulty = difficulty or Difficulty()
    problems: dict[str, Problem] = {}
    dry_draws = 0
    for problem in _generate(seed, difficulty):
        dry_draws += 1
        wanted = difficulty.subtraction or "-" not in problem.expression
        if wanted and problem.expression not in problems and split_of(problem.expression) == split:
            problems[problem.expression] = problem
            dry_draws = 0
        if len(problems) == count or dry_draws == _MAX_DRY_DRAWS:
            break
    if len(problems) < count:
        raise ValueError(f"only {len(problems)} different {split!r} problems found for {difficulty}, asked for {count}")
    return list(problems.values())


def render_prompt(problem: Problem, style: Style) -> str:
    """Write a problem as a user message.

    "terse" is the bare expression, one token per character for the tiny policy; "natural" is a sentence for a model
    that reads English, with the expression spaced the way tokenizers of such models have seen it.
    """
    if style == "terse":
        return problem.expression
    if style == "natural":
        return f"Calculate {_space(problem.expression)}."
    raise ValueError(f"style must be one of {get_args(Style)}, got {style!r}")


def render_chat(problem: Problem, style: Style) -> list[dict[str, str]]:
    """Write a problem as the messages to which a policy responds, the last of which is `render_prompt`'s.

    "natural" puts a worked example before it, which shows that the answer is the whole equation. A small model that is
    told to answer with the number only is hardly ever right; one that writes the equation sometimes is.
    """
    question = {"role": "user", "content": render_prompt(problem, style)}
    if style == "terse":
        return [question]
    return [
        {"role": "user", "content": render_prompt(_EXAMPLE, style)},
        {"role": "assistant", "content": f"{_space(_EXAMPLE.expression)} = {_EXAMPLE.answer}"},
        question,
    ]


def to_verl_rows(problems: Iterable[Problem], *, split: Split, style: Style) -> list[dict[str, Any]]:
    """Turn problems into rows of verl's RL dataset (the columns its `RLHFDataset` and reward managers read)."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": render_chat(problem, style),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": index, "split": split, "style": style, "expression": problem.expression},
        }
        for index, problem in enumerate(problems)
    ]


def write_parquet(
    out_dir: Path | str,
    *,
    n_train: int = 4096,
    n_val: int = 256,
    seed: int = 0,
    style: Style = "terse",
    difficulty: Difficulty | None = None,
) -> tuple[Path, Path]:
    """Write `train.parquet` and `val.parquet` for verl and return their paths.

    Args:
        out_dir: created if absent; files of these names are replaced.
        n_train: training problems, all different.
        n_val: held-out problems, all different and none of them ever in a train split or the tiny policy's warm-up.
        seed: seed of the draw; the same arguments give the same rows.
        style: how a problem is put to the model, see `render_chat`.
        difficulty: which problems, see `Difficulty`.

    Raises:
        ValueError: see `make_problems`.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    sizes: dict[Split, int] = {"train": n_train, "val": n_val}
    for split, count in sizes.items():
        problems = make_problems(split, count, seed=seed, difficulty=difficulty)
        rows = to_verl_rows(problems, split=split, style=style)
        pq.write_table(pa.Table.from_pylist(rows), out_dir / f"{split}.parquet")
    return out_dir / "train.parquet", out_dir / "val.parquet"


def _space(expression: str) -> str:
    return "".join(f" {c} " if c in "+-*" else c for c in expression)


def _generate(seed: int, difficulty: Difficulty) -> Iterator[Problem]:
    reasoning_gym = gym.load()
    # Item i comes from Random(seed + i), so that neighbouring seeds would give the same problems, shifted by one. A
    # stride that is longer than any scan keeps seeds apart.
    dataset = reasoning_gym.create_dataset(
        difficulty.generator,
        min_terms=difficulty.min_terms,
        max_terms=difficulty.max_terms,
        min_digits=difficulty.min_digits,
        max_digits=difficulty.max_digits,
        seed=seed * 1_000_000_007,
        size=1,  # the length only bounds iteration, and items are drawn by index here
    )
    index = 0
    while True:
        item = dataset[index]
        yield Problem(expression=item["metadata"]["expression"].replace(" ", ""), answer=item["answer"])
        index += 1

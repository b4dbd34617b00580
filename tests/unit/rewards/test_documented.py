"""Every row of the tables in docs/data.md that say what counts as an answer, and what is equal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_verl.rewards import judge
from drpo_verl.rewards.reward import compute_score

_PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `(.+?)` \| `(.+?)` \| ([01]) \|", re.MULTILINE)


def _rows(heading: str) -> list[tuple[str, str, float]]:
    section = _PAGE.split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [(first.replace("⏎", "\n"), truth, float(score)) for first, truth, score in _ROW.findall(section)]
    assert len(rows) == section.count("\n| `")
    return rows


@pytest.fixture(autouse=True, scope="module")
def _impatient() -> Iterator[None]:
    shared = judge.Judge(seconds=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "shared", lambda: shared)
        yield
    shared.close()


@pytest.mark.parametrize(("response", "truth", "score"), _rows("What counts as an answer"))
def test_what_counts_as_an_answer(response: str, truth: str, score: float) -> None:
    assert compute_score("math", response, truth) == score


@pytest.mark.parametrize(("answer", "truth", "score"), _rows("What is equal"))
def test_what_is_equal(answer: str, truth: str, score: float) -> None:
    assert compute_score("math", rf"\boxed{{{answer}}}", truth) == score

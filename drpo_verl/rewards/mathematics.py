r"""Whether a response answers a question of mathematics: what it commits to, compared with the truth.

`extraction` finds the answer and `notation` takes it apart. Equal text and equal numbers are decided here, at once and
in any thread: nearly all answers to DAPO-Math and AIME, whose truths are integers. Everything else is LaTeX, read with
math-verify's grammar (`grammar`) and compared exactly (`equality`), in a process that is killed when it takes too long
(`judge`).

Nothing evaluates an answer as code: its LaTeX goes through a grammar, and not through sympy's `parse_expr`, which is
Python's `eval`.
"""

import logging
from functools import lru_cache

from drpo_verl.rewards import grammar, judge
from drpo_verl.rewards.extraction import extract
from drpo_verl.rewards.literals import NUMBER, equal
from drpo_verl.rewards.notation import Reading

_log = logging.getLogger(__name__)

_MAX_CHARACTERS = 512
"""A longer answer is wrong; MATH's longest has fewer than 200 characters."""
_MAX_DEPTH = 32
"""An answer with braces and parentheses nested more deeply is wrong: the grammar follows them by recursion."""


def agree(answer: str, ground_truth: str) -> bool:
    """Return whether an extracted answer is the truth."""
    if len(answer) > _MAX_CHARACTERS or _depth(answer) > _MAX_DEPTH:
        return answer.strip() == ground_truth.strip()
    given, truth = Reading.of(answer), Reading.of(ground_truth)
    given, truth = given.with_unit_of(truth), truth.with_unit_of(given)
    as_written = given.agrees_with(truth)
    if as_written is not None:
        return as_written
    if _equal(given.value, truth.value):
        return True
    if given.percent == truth.percent:
        return False
    return _equal(*(rf"\frac{{{each.value}}}{{100}}" if each.percent else each.value for each in (given, truth)))


def score(response: str, ground_truth: str) -> float:
    """Return 1.0 if the response answers with the truth, else 0.0; in any thread, for any text.

    A broken data set or installation must not look like a low score, and is an error.

    Raises:
        ValueError: the truth is empty.
        ImportError: math-verify's grammar is missing.
        JudgeError: the processes that compare answers do not run.
    """
    if not ground_truth.strip():
        raise ValueError("the ground truth is empty")
    answer = extract(response)
    return float(answer is not None and agree(answer, ground_truth))


def _equal(answer: str, truth: str) -> bool:
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(truth):
        return equal(answer, truth)
    try:
        return _verdict(answer, truth)
    except judge.AnswerError as error:
        _log.warning("an answer counts as wrong: %s (truth %r, answer %.80r)", error, truth, answer)
        return False


@lru_cache(maxsize=65_536)  # verdicts only: an error, such as a time-out on a busy machine, is not remembered
def _verdict(answer: str, truth: str) -> bool:
    return judge.shared().ask(compare, answer, truth)


def load() -> None:
    """Import what the first comparison needs, which takes seconds.

    Raises:
        ImportError: it is not installed.
    """
    grammar.load()
    from drpo_verl.rewards import equality  # noqa: F401


def compare(answer: str, truth: str) -> bool:
    """Return whether two texts of LaTeX are equal, in this process, without a limit to its time or memory."""
    load()
    from drpo_verl.rewards import equality

    read = []
    for text in (answer, truth):
        try:
            read.append(grammar.read(text))
        except grammar.NotReadError:
            # "The maximum of f = 5": a name that is not in the grammar may still be given a value.
            name, sign, value = text.rpartition("=")
            if not sign or "," in text or any(character.isdigit() for character in name):
                return False
            return compare(*((value, truth) if text is answer else (answer, value)))
    return equality.same(*read) and not _set_for_tuple(answer, truth)


def _set_for_tuple(answer: str, truth: str) -> bool:
    # The grammar forgets the braces: {1, 2} is no (1, 2), as a list without braces may be.
    pairs = ((answer, truth), (truth, answer))
    return any(a.startswith((r"\{", r"\lbrace")) and b.startswith(("(", "[")) for a, b in pairs)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest

r"""Whether a response answers a question of mathematics: what it commits to, compared with the truth by math-verify.

1. What stands before the last `</think>` does not count.
2. The *answer* is what the last `\boxed{...}` holds, or, without any, the rest of the line after the last "answer:" or
   "answer is" (DAPO-Math asks for such a line). A response with neither, or with a last box that is never closed, has
   no answer: math-verify's search for any number in the text would reward guesses.
3. Equal text and equal numbers are decided here, at once and in any thread: nearly all answers to DAPO-Math and AIME,
   whose truths are integers. Everything else is LaTeX to be parsed and compared symbolically, by math-verify, in a
   process that is killed when it takes too long (`judge`).

Nothing evaluates an answer as code: its LaTeX goes through math-verify's grammar, and not through sympy's `parse_expr`,
which is Python's `eval`.
"""

import logging
import re
from collections import deque
from functools import lru_cache
from types import ModuleType

from drpo_verl.rewards import judge
from drpo_verl.rewards.literals import NUMBER, equal
from drpo_verl.rewards.packages import require

_log = logging.getLogger(__name__)

_THOUGHT = "</think>"
_BOX = re.compile(r"\\f?boxed\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_CUE = re.compile(r"\banswer(?: is)?[ \t]*:|\banswer is\b", re.IGNORECASE)
_SIZES = re.compile(r"(?<!\\)\\(?:left|right)(?![a-zA-Z])")
_THIN_SPACE = re.compile(r"(?<!\\)\\[!,]")
_WIDE_SPACE = re.compile(r"(?<!\\)\\[;: ]|~")
_INLINE = re.compile(r"\$([^$]+)\$|\\\(([^$]+?)\\\)")

_MAX_CHARACTERS = 512
"""A longer answer is wrong; MATH's longest has fewer than 200 characters."""
_MAX_DEPTH = 32
"""An answer with braces and parentheses nested more deeply is wrong: the grammar follows them by recursion."""
_SECONDS = 5
"""math-verify's own limit to each of its steps, which ends what Python's interpreter can interrupt."""


def extract(response: str) -> str | None:
    """Return the answer that a response commits to (rules 1 and 2 above) as LaTeX or text, or None if it does not."""
    response = response[response.rfind(_THOUGHT) + len(_THOUGHT) :] if _THOUGHT in response else response
    box = _last(_BOX, response)
    if box is not None:
        return _braced(response, box.end())
    cue = _last(_CUE, response)
    if cue is None:
        return None
    line = response[cue.end() :].lstrip(" \t*:\n").partition("\n")[0]
    inline = _INLINE.match(line)
    if inline is not None:
        line = inline[1] or inline[2]
    return line.strip(" \t\r*").removesuffix(".").strip(" \t*$") or None


def agree(answer: str, ground_truth: str) -> bool:
    """Return whether an extracted answer is the truth (rule 3 above)."""
    answer, truth = _plain(answer), _plain(ground_truth)
    if answer == truth:
        return True
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(truth):
        return equal(answer, truth)
    if not answer or len(answer) > _MAX_CHARACTERS or _depth(answer) > _MAX_DEPTH:
        return False
    return _symbolically_equal(answer, truth)


def score(response: str, ground_truth: str) -> float:
    """Return 1.0 if the response answers with the truth, else 0.0; in any thread, for any text.

    A broken data set or installation must not look like a low score, and is an error.

    Raises:
        ValueError: the truth is empty.
        ImportError: math-verify is missing.
        JudgeError: the processes that compare answers do not run.
    """
    if not ground_truth.strip():
        raise ValueError("the ground truth is empty")
    answer = extract(response)
    return float(answer is not None and agree(answer, ground_truth))


def _symbolically_equal(answer: str, truth: str) -> bool:
    try:
        return _verdict(answer, truth)
    except judge.AnswerError as error:
        _log.warning("an answer counts as wrong: %s (truth %r, answer %.80r)", error, truth, answer)
        return False


@lru_cache(maxsize=65_536)  # verdicts only: an error, such as a time-out on a busy machine, is not remembered
def _verdict(answer: str, truth: str) -> bool:
    return judge.shared().ask(_verify, answer, truth)


def load() -> ModuleType:
    """Import math-verify, which takes seconds.

    Raises:
        ImportError: it is not installed.
    """
    return require("math_verify", "math-verify")


def _verify(answer: str, truth: str) -> bool:
    math_verify = load()
    targets = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    gold, parsed = (
        math_verify.parse(rf"\boxed{{{text}}}", targets, parsing_timeout=_SECONDS) for text in (truth, answer)
    )
    return bool(math_verify.verify(gold, parsed, timeout_seconds=_SECONDS))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = deque(pattern.finditer(text), maxlen=1)
    return matches[0] if matches else None


def _braced(text: str, start: int) -> str | None:
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()]
    return None


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest


def _plain(text: str) -> str:
    # Without the spelling that no reader of typeset LaTeX sees.
    text = _SIZES.sub("", text.replace("{,}", ",")).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    text = _WIDE_SPACE.sub(" ", _THIN_SPACE.sub("", text))
    return " ".join(text.split()).strip("$ ").removesuffix(".").removeprefix("+")

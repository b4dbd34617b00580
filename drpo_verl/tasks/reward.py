r"""Rule-based reward for arithmetic: a response must commit to one number, and to the right one.

The rule, in order:

1. The *answer* is what the last `\boxed{...}` holds; without one, what follows the last "=", "answer is" or "answer:";
   without those, the whole response.
2. The answer must be one number literal and nothing else ("46", "-46", "46.0", "1,046"; around it only white space, $,
   * and a full stop at the end). So "3+4" for 7, "46 or 45", "4 6" and prose with a number in it score 0: a policy must
   compute and commit, it cannot restate the question or hedge.
3. math-verify decides whether that number equals the ground truth.

math-verify searches any text for a number, counts "3+4" as 7, and evaluates what it finds: "9**9**9" keeps it busy for
ever. Its protection is a SIGALRM time-out, which works in a main thread only, and verl's reward loop scores in worker
threads. Handing it nothing but short number literals makes both dangers impossible, with its time-outs off.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, parse, verify

# ASCII digits only (\d would take Arabic-Indic ones). At most 6 decimals, the precision math-verify compares at, so
# 46.0000001 cannot round to 46. The bounds keep a number's cost constant.
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,32}|[0-9]{1,3}(?:,[0-9]{3}){1,8})(?:\.[0-9]{0,6})?")
_ANSWER_CUE = re.compile(r"=|\banswer(?: is:?|:)", re.IGNORECASE)
_BOXED = "\\boxed{"


def _is_no_timeout_notice(record: logging.LogRecord) -> bool:
    return "Timeout is disabled" not in record.getMessage()


# math-verify warns once per process that without its time-outs the caller must bound the work. The literals do.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).addFilter(_is_no_timeout_notice)


def extract_answer(response: str) -> str | None:
    """Return the number literal a response commits to (rules 1 and 2 above), or None if it does not."""
    boxed = response.rfind(_BOXED)
    if boxed >= 0:
        start = boxed + len(_BOXED)
        end = response.find("}", start)
        candidate = response[start:end] if end >= 0 else ""
    else:
        candidate = response
        for cue in _ANSWER_CUE.finditer(response):
            candidate = response[cue.end() :]
    candidate = candidate.strip(" \t\r\n$*").removesuffix(".").rstrip(" $*")
    return candidate if _NUMBER.fullmatch(candidate) else None


@lru_cache(maxsize=65_536)  # answers repeat within a group and over steps: ~1 ms the first time, ~1 us after
def _equal(literal: str, ground_truth: str) -> bool:
    """Compare two number literals by value with math-verify."""
    gold, answer = (
        parse(text, extraction_config=[ExprExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
        for text in (ground_truth, literal.removeprefix("+").removesuffix("."))
    )
    return bool(gold) and bool(answer) and verify(gold, answer, timeout_seconds=None)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> float:
    """Score one response, as verl's `custom_reward_function` (`name=compute_score`): 1.0 if right, else 0.0.

    Safe in any thread, and it never evaluates what the model wrote. Any text at all yields a score.

    Args:
        data_source: unused; verl passes it.
        solution_str: the decoded response, special tokens removed.
        ground_truth: the right number, as a literal.
        extra_info: unused; verl passes it.
        **kwargs: whatever other arguments a reward manager passes; ignored.

    Raises:
        ValueError: `ground_truth` is not a number literal: a broken data set must not look like a low score.
    """
    if not _NUMBER.fullmatch(ground_truth):
        raise ValueError(f"ground truth must be a number, got {ground_truth!r} (data source {data_source!r})")
    literal = extract_answer(solution_str)
    return float(literal is not None and _equal(literal, ground_truth))

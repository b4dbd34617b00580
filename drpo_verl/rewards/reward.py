r"""The reward that verl calls, by the data source of the problem, and the rule for arithmetic.

| data source | who decides |
|---|---|
| `drpo_verl/arithmetic` | the rule below |
| `reasoning_gym/<task>` | the task's own scorer, given what stands between the answer tags (`gym`) |
| any other (`math_dapo`, `aime24`, ...) | the last box or the answer's line, compared exactly (`mathematics`) |

The rule for arithmetic: a response must commit to one number, and to the right one. In order:

1. The *answer* is what the last box holds; without one, what follows the last "=", "answer is" or "answer:"; without
   those, the whole response.
2. The answer must be one number literal and nothing else ("46", "-46", "46.0", "1,046"; around it only white space, $,
   * and a full stop at the end). So "3+4" for 7, "46 or 45", "4 6" and prose with a number in it score 0: a policy must
   compute and commit, it cannot restate the question or hedge.
3. Its value must be that of the ground truth, exactly.
"""

import re
from numbers import Integral
from typing import Any

from drpo_verl.rewards import extraction, gym, mathematics
from drpo_verl.rewards.arithmetic import DATA_SOURCE as ARITHMETIC
from drpo_verl.rewards.literals import NUMBER, equal
from drpo_verl.rewards.packages import require

require("latex2sympy2_extended", "math-verify")  # when verl loads the reward, and not after the first rollout

_ANSWER_CUE = re.compile(r"=|\banswer(?: is:?|[ \t]{0,9}(?:\*\*|__|\*)?:)", re.IGNORECASE)


def extract_answer(response: str) -> str | None:
    """Return the number literal a response commits to (rules 1 and 2 above), or None if it does not."""
    candidate = extraction.boxed(response)
    if candidate is None:
        candidate = response
        for cue in _ANSWER_CUE.finditer(response):
            candidate = response[cue.end() :]
    candidate = candidate.strip(" \t\r\n$*").removesuffix(".").rstrip(" $*")
    return candidate if NUMBER.fullmatch(candidate) else None


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | int,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> float:
    """Score one response, as verl's `custom_reward_function` (`name=compute_score`): 1.0 if right, else 0.0.

    verl's reward managers call it, with these keywords, in threads of the reward loop's processes. Safe in any thread,
    and it never evaluates what the model wrote. Any text at all yields a score.

    Args:
        data_source: decides how the response is scored; see the module.
        solution_str: the decoded response without special tokens.
        ground_truth: the right answer; a number literal for arithmetic. An integer stands for its text.
        extra_info: further columns of the problem; reasoning-gym's have an `entry`, the problem that its scorer takes.
        **kwargs: other arguments that a reward manager passes; ignored.

    Raises:
        ValueError: the problem is broken, which must not look like a low score.
        ImportError: a package that decides rewards is missing.
        JudgeError: the processes that compare answers do not run.
    """
    if isinstance(ground_truth, Integral) and not isinstance(ground_truth, bool):
        ground_truth = str(ground_truth)
    if not isinstance(ground_truth, str):
        raise ValueError(f"the ground truth must be a text, got {ground_truth!r} (data source {data_source!r})")
    if data_source == ARITHMETIC:
        if not NUMBER.fullmatch(ground_truth):
            raise ValueError(f"ground truth must be a number, got {ground_truth!r} (data source {ARITHMETIC!r})")
        literal = extract_answer(solution_str)
        return float(literal is not None and equal(literal, ground_truth))
    if data_source.startswith(gym.PREFIX):
        entry = (extra_info or {}).get("entry")
        if not isinstance(entry, str):
            raise ValueError(f"a problem of {data_source!r} has no extra_info.entry: make it with drpo-verl data")
        return gym.score(data_source.removeprefix(gym.PREFIX), solution_str, entry)
    try:
        return mathematics.score(solution_str, ground_truth)
    except ValueError as error:
        raise ValueError(f"{error} (data source {data_source!r})") from error

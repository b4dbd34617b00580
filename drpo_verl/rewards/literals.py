"""Number literals and their comparison by value, which is cheap and safe in any thread."""

import logging
import re
from functools import lru_cache

from drpo_verl.rewards.packages import require

# ASCII digits only (\d would take Arabic-Indic ones). At most 6 decimals, the precision in which math-verify compares,
# so that 46.0000001 does not round to 46. The bounds keep the cost of a number constant.
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,32}|[0-9]{1,3}(?:,[0-9]{3}){1,8})(?:\.[0-9]{0,6})?")


# math-verify warns once per process that without its time-outs the caller must bound the work, as the literals do.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).addFilter(lambda record: "Timeout is disabled" not in record.getMessage())


@lru_cache(maxsize=65_536)  # answers repeat within a group and over steps: ~1 ms the first time, ~1 us after
def equal(literal: str, ground_truth: str) -> bool:
    """Compare two texts that `NUMBER` matches by their values, with math-verify."""
    math_verify = require("math_verify", "math-verify")
    config = [math_verify.ExprExtractionConfig()]
    gold, answer = (
        math_verify.parse(text, extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
        for text in (ground_truth, literal.removeprefix("+").removesuffix("."))
    )
    return bool(gold) and bool(answer) and bool(math_verify.verify(gold, answer, timeout_seconds=None))

"""Number literals and their comparison by value, which is exact, cheap and safe in any thread."""

import re
from fractions import Fraction
from functools import lru_cache

# ASCII digits only (\d would take Arabic-Indic ones). The bounds keep the cost of a number constant.
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,32}|[0-9]{1,3}(?:,[0-9]{3}){1,8})(?:\.[0-9]{0,32})?")


@lru_cache(maxsize=65_536)  # answers repeat within a group and over steps
def equal(literal: str, ground_truth: str) -> bool:
    """Compare two texts that `NUMBER` matches by their values."""
    answer, truth = (Fraction(text.replace(",", "")) for text in (literal, ground_truth))
    return answer == truth

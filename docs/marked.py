"""The part of a page between two marks, which a script writes."""

from __future__ import annotations


def replaced(page: str, begin: str, end: str, text: str) -> str:
    """A page with ``text`` between two lines, whatever stands there.

    Args:
        page: Markdown with the lines ``begin`` and ``end``.
        begin: the first mark.
        end: the second.
        text: what to put there.

    Raises:
        ValueError: when the page does not have each of them once, in this order.
    """
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page has to hold the two lines\n{begin}\n{end}")
    return before + "\n\n".join([begin, text, end]) + after

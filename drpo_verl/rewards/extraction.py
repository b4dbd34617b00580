r"""What a response to a question of mathematics commits to: one answer, or none.

1. What stands before the last `</think>` does not count.
2. The answer is what the last box holds that is not empty: `\boxed{46}`, `\fbox{46}`, `\boxed {46}` or `\boxed 46`.
   Boxes with nothing but a comma, "and" or "or" between them are one list.
3. Without a box, it is what follows the last "Answer:". A later "answer is" replaces it only if a number or a formula
   follows at once, since "this answer is correct" is a remark. Without "Answer:", it is what follows the last "answer
   is". Display mathematics after the words counts whole; otherwise the rest of the line does, or the next line, up to a
   sentence that has no figure in it.

A response with none of them, or with a last box that is never closed, has no answer: a search for any number in the
text would reward guesses. The rest of a line with a second formula belongs to the answer: "$46$ or $45$" is no 46.
"""

import re
from collections import deque
from collections.abc import Iterator

_THOUGHT = "</think>"
_BOX = re.compile(r"\\f?box(?:ed)?(?![a-zA-Z])\s*(?:(\{)|([+-]?(?:[0-9.]|\\(?!f?box)[a-zA-Z])[^\s$]*))")
_BETWEEN = re.compile(r"\\q?quad|\\text|\\[()]|[\s${}]")
_LISTED = re.compile(r"(?:[,;]|,?and|,?or)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_COLON = re.compile(r"\banswer(?: is)?[ \t]{0,9}(?:\*\*|__|\*)?[ \t]{0,9}:", re.IGNORECASE)
_IS = re.compile(r"\banswer is\b", re.IGNORECASE)
_THE_FINAL = re.compile(r"[\s*_]*(?:(?:the|my|so the|thus the) )?(?:final |correct )?", re.IGNORECASE)
_AROUND = " \t\r\n*_:}"
_FORMULA_FOLLOWS = re.compile(r"[\s*_:]*(?:[$0-9]|[+-]\s*[.0-9]|\\)")
_DISPLAY = re.compile(
    r"\\\[(.*?)\\\]|\$\$(.*?)\$\$|\\begin\{(?:equation|align|gather)\*?\}(.*?)\\end\{(?:equation|align|gather)",
    re.DOTALL,
)
_INLINE = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)")
_SENTENCE_ENDS = re.compile(r"[.!;]\s+(?=[A-Z])|[.!]$")
_MOST_BETWEEN = 40
"""Characters between two boxes of one list."""
_LONGEST_LINE = 2_000
"""Characters of a line that are looked at; an answer of so many is wrong."""
_PLAIN_UNIT = re.compile(r"([+-]?[0-9][0-9.,/]*)[ ]+([a-zA-Z]{4,}(?:[ ][a-zA-Z]+)*)")


def boxed(response: str) -> str | None:
    r"""Return what the last box of a text holds that is not empty; of several boxes in a list, what all hold.

    Returns:
        None without a box, and an empty text if the last one is never closed.
    """
    held: list[str] = []
    start = len(response)
    for box in reversed(list(_BOX.finditer(response))):
        if box[2]:
            inside, end = box[2].rstrip(".,;:)*"), box.end()
        else:
            inside, end = _braced(response, box.end())
        if held and not _LISTED.fullmatch(_BETWEEN.sub("", response[end : min(start, end + _MOST_BETWEEN)])):
            break
        if inside is None:
            return ""
        if inside.strip():
            held, start = [inside, *held], box.start()
    return ", ".join(dict.fromkeys(held)) if held else None


def extract(response: str) -> str | None:
    """Return the answer that a response commits to as LaTeX or text, or None; see the module for the rules."""
    response = response[response.rfind(_THOUGHT) + len(_THOUGHT) :] if _THOUGHT in response else response
    if (box := boxed(response)) is not None:
        return box.strip() or None
    cue = _cue(response)
    return None if cue is None else _following(response[cue.end() :]) or None


def _cue(response: str) -> re.Match[str] | None:
    colon, plain = _last(_COLON.finditer(response)), _last(_IS.finditer(response))
    if colon is None or plain is None or plain.start() < colon.end():
        return colon or plain
    at_once = _THE_FINAL.fullmatch(response, colon.end(), plain.start())  # "Final answer: the final answer is x"
    return plain if at_once or _FORMULA_FOLLOWS.match(response, plain.end()) else colon


def _following(text: str) -> str:
    text = text.lstrip(_AROUND)
    if display := _DISPLAY.match(text):
        return " ".join(next(filter(None, display.groups()), "").split()).removesuffix(".").strip()
    line = text[:_LONGEST_LINE].partition("\n")[0].strip(" \t\r*_")
    for end in _SENTENCE_ENDS.finditer(line):
        if not re.search(r"[0-9$\\]", line[end.end() :]):
            line = line[: end.start()]
            break
    line = line.strip(" \t*_")
    if _INLINE.search(line):
        return _as_mathematics(line)
    if unit := _PLAIN_UNIT.fullmatch(line):
        return rf"{unit[1]}\text{{ {unit[2]}}}"
    return line.removesuffix(r"\]").removesuffix(r"\)").removesuffix(".").strip(" \t*$")


def _as_mathematics(line: str) -> str:
    # One formula: what is outside of its dollars is text.
    parts, end = [], 0
    for formula in _INLINE.finditer(line):
        parts += [_as_text(line[end : formula.start()]), formula[1] or formula[2]]
        end = formula.end()
    return "".join([*parts, _as_text(line[end:])]).strip().removesuffix(".").strip(" *")


def _as_text(outside: str) -> str:
    outside = outside.strip("*_")
    if re.fullmatch(r"[ ]*[a-zA-Z][a-zA-Z ]*", outside) and outside.strip() not in ("and", "or"):
        return rf"\text{{{outside}}}"
    return outside


def _last(matches: Iterator[re.Match[str]]) -> re.Match[str] | None:
    last = deque(matches, maxlen=1)
    return last[0] if last else None


def _braced(text: str, start: int) -> tuple[str | None, int]:
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()], brace.end()
    return None, len(text)

r"""What a mathematical text says beside its value: percent, unit, base, words.

These are compared as they are written, before any grammar sees the value. `Reading.of` takes any text.

| written | read as |
|---|---|
| `35\%`, `35 percent` | 35, a percentage: equal to 35, and to 0.35 |
| `5\text{ cm}`, `\$5`, `90^\circ` | the value and a unit, which may be missing on one side, but not be another one |
| `5\text{ million}` | 5000000 |
| `2102_3` | digits and their base: equal to nothing but the same digits with the same base |
| `\text{Monday}`, `(B)` | words, compared as text; upper and lower case differ for single letters only |
| `1, 2, \ldots, 9`, `4 \pmod 7` | no value: equal to the same text only |
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_SIZES = re.compile(r"(?<!\\)\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|(?<!\\)\\displaystyle(?![a-zA-Z])")
_THIN_SPACE = re.compile(r"(?<!\\)\\(?:!\s*|,)")
_WIDE_SPACE = re.compile(r"(?<!\\)\\[;: ]|~|\\q?quad(?![a-zA-Z])")
_THOUSANDS = re.compile(r"(?<=[0-9])\{,\}(?=[0-9]{3}(?![0-9]))")
_SPACED_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_LOOSE_SPACE = re.compile(r"(?<![a-zA-Z0-9]) | (?![a-zA-Z0-9])")

_CHARACTERS = str.maketrans(
    {"\u2212": "-", "π": r"\pi ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "≤": r"\leq ", "≥": r"\geq ",
     "≠": r"\neq ", "∞": r"\infty ", "∪": r"\cup ", "∅": r"\emptyset ", "√": r"\sqrt ",
     "²": "^2", "³": "^3", "½": r"\frac{1}{2}"}
)  # fmt: skip

_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:percent|\\?%)\s*\}|\bpercent)$")
_DOLLARS = re.compile(r"^\\\$\s*|\s*\\\$$")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\(?:circ|degree)\s*\}?|°)\s*(?:\\text\{)?([CF]?)\}?$")
_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_WORD = r"\\(?:text|textnormal|textrm|textbf|textit|mathrm|mbox|operatorname)\s*\{([^{}]*)\}"
_TEXT_UNIT = re.compile(rf"^(.*?[0-9a-zA-Z)\]}}])\s*((?:(?:/|\\cdot|\s)*{_WORD}(?:\^\{{?-?[0-9]\}}?)?)+)$", re.DOTALL)
_BARE_UNIT = re.compile(
    r"^(.*[0-9})])\s*((?:mm|cm|dm|km|mi|ft|in|kg|mg|lb|lbs|oz|ml|mL|min|sec|hr|hrs|mph|inch|inches|feet|foot|yards?|miles?"
    r"|(?:centi|milli|kilo)?met(?:er|re)s?|(?:kilo)?grams?|lit(?:er|re)s?|degrees?|dollars?|cents?|seconds?|minutes?|hours?"
    r"|days?|weeks?|months?|years?|units?|square units?|cubic units?)(?:\^\{?[23]\}?)?)$"
)
_NO_UNIT = re.compile(
    r"[0-9]|\b(?:and|or|not|no|nor|if|else|unless|except|than|more|less|least|most|about|approximately|nearly|plus|minus"
    r"|times|divided|multiplied|over|to|from|dozens?|half|halves|quarters?|thirds?|(?:four|fif|six|seven|eigh|nin|ten)ths?"
    r"|(?:hundred|thousand|million)ths?|wrong|factorial|squared|cubed|root|point|pi|infinity|mod|base)\b",
    re.IGNORECASE,
)
_MULTIPLIERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SAME_UNIT = {
    "centimeter": "cm", "millimeter": "mm", "kilometer": "km", "meter": "m", "inche": "in", "inch": "in", "feet": "ft",
    "foot": "ft", "mile": "mi", "yard": "yd", "kilogram": "kg", "gram": "g", "liter": "l", "hour": "h", "hr": "h",
    "minute": "min", "second": "s", "sec": "s", "pound": "lb", "ounce": "oz",
}  # fmt: skip

_BASE = re.compile(r"\(?([0-9][0-9a-zA-Z]*)\)?\s*_\s*\{?\s*(?:\\text\{)?\s*([0-9]{1,2})\s*\}?\}?")
_TIME = re.compile(r"[0-9]{1,2}:[0-5][0-9](?::[0-5][0-9])?")
_NO_VALUE = re.compile(r"\\(?:[lc]?dots[a-z]?|pmod|bmod|equiv)(?![a-zA-Z])|\.\.\.|[0-9]\.[0-9]*\.")
_SHORTEST_WORD = 3
"""Letters of a word that is not taken for a product of symbols."""
_WORDS = re.compile(r"[^\W\d_]+(?:[ '\u2019-]+[^\W\d_]+)*")


@dataclass(frozen=True)
class Reading:
    r"""A mathematical text, taken apart.

    Attributes:
        text: the text, without the spelling that no reader of typeset LaTeX sees.
        value: LaTeX of the value, without unit and percent sign; empty if there is none for a grammar to read.
        unit: name of the unit, or empty.
        percent: whether the value is a percentage.
        words: the text of an answer in words, or empty; with `certain_words` False if it may be a product of symbols.
        clock: whether it may be a time of day: "3:30" is no "1:10", though it is the same ratio.
        base: the digits and their base, as "2102_3", or empty.
        certain_words: whether `words` can be nothing but words.
    """

    text: str
    value: str
    unit: str = ""
    percent: bool = False
    words: str = ""
    base: str = ""
    clock: bool = False
    certain_words: bool = False

    @classmethod
    def of(cls, text: str) -> Reading:
        """Read a text."""
        text = plain(text)
        spaced, text = text, _LOOSE_SPACE.sub("", text)
        if base := _BASE.fullmatch(text):
            digits = base[1].lstrip("0").upper() or "0"
            return cls(text, "", base=f"{digits}_{int(base[2])}")
        if _NO_VALUE.search(text):
            return cls(text, "")
        words, certain = _words(spaced)
        if certain:
            return cls(text, "", words=words, certain_words=True)
        value, percent = _without(_PERCENT, spaced)
        value, unit = _without_unit(value)
        if _SPACED_THOUSANDS.fullmatch(value):
            value = value.replace(" ", "")
        return cls(text, value, unit=unit, percent=percent, words=words, clock=bool(_TIME.fullmatch(text)))

    def with_unit_of(self, other: Reading) -> Reading:
        r"""Return this reading with bare letters at its end as a unit, if the other has it: "5 m" for `5\text{ m}`."""
        unit = other.unit
        bare = re.fullmatch(rf"(.*[0-9)}}])\s*{re.escape(unit)}", self.value) if unit and not self.unit else None
        return replace(self, value=bare[1], unit=unit) if bare else self

    def agrees_with(self, truth: Reading) -> bool | None:
        """Return whether two readings are the same by what is written, or None if their values have to decide."""
        if self.text == truth.text:
            return bool(self.text)
        if self.words and truth.words and self._words_count(truth):
            return self.words == truth.words
        if self.base or truth.base:
            return self.base == truth.base
        other_unit = self._measure and truth._measure and self._measure != truth._measure
        if not self.value or not truth.value or other_unit or (self.clock and truth.clock):
            return False
        return None

    @property
    def _measure(self) -> str:
        return self.unit or ("percent" if self.percent else "")

    def _words_count(self, other: Reading) -> bool:
        # "dog" is not "god", but the product "ab" is "ba".
        long = min(len(self.words), len(other.words)) >= _SHORTEST_WORD
        return long or self.certain_words or other.certain_words


def plain(text: str) -> str:
    """Return a text without the spelling that no reader of typeset LaTeX sees."""
    text = _SIZES.sub("", _THOUSANDS.sub("", text).replace("{,}", ","))
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text).translate(_CHARACTERS)
    text = _WIDE_SPACE.sub(" ", _THIN_SPACE.sub("", text))
    text = " ".join(text.split())
    if not text.endswith(r"\$"):
        text = text.rstrip("$ ")
    return text.lstrip("$ ").removesuffix(".").removeprefix("+").strip()


def _without(pattern: re.Pattern[str], text: str) -> tuple[str, bool]:
    rest = pattern.sub("", text)
    return (rest, True) if rest and rest != text else (text, False)


def _words(text: str) -> tuple[str, bool]:
    unwrapped = re.sub(_WORD, r"\1", text)
    marked = unwrapped != text
    unwrapped = " ".join(unwrapped.strip(" .'\"`").split())
    if choice := re.fullmatch(r"\(([A-Za-z])\)", unwrapped):
        unwrapped = choice[1]
    if not _WORDS.fullmatch(unwrapped):
        return "", False
    if len(unwrapped) == 1:
        return unwrapped, marked
    return unwrapped.casefold(), marked or (" " in unwrapped and len(max(unwrapped.split(), key=len)) > 2)


def _without_unit(text: str) -> tuple[str, str]:
    value, dollars = _without(_DOLLARS, text)
    if dollars:
        text = value
    degrees = _DEGREES.search(text)
    if degrees and degrees.start() and not _ANGLE.search(text):
        return text[: degrees.start()], "degree" + degrees[1].casefold()
    match = _TEXT_UNIT.match(text) or _BARE_UNIT.match(text)
    if match is None or _NO_UNIT.search(re.sub(r"\^\{?-?[0-9]\}?", "", match[2])):
        return text, "dollar" if dollars else ""
    named = re.sub(_WORD, r" \1", match[2]).replace(r"\cdot", " ").casefold()
    parts = re.findall(r"[^\W\d_]+(?:\^\{?-?[0-9]\}?)?|/", named)
    power = sum(_MULTIPLIERS.get(part, 0) for part in parts)
    unit = " ".join(_unit(part) for part in parts if part not in _MULTIPLIERS) or ("dollar" if dollars else "")
    value = match[1].rstrip()
    return (rf"({value})\cdot 10^{{{power}}}" if power else value), unit


def _unit(word: str) -> str:
    name, _, power = re.sub(r"[{}]", "", word).partition("^")
    name = name.replace("metre", "meter").replace("litre", "liter")
    if len(name) > 2 and not name.endswith("ss"):
        name = name.removesuffix("s")
    return _SAME_UNIT.get(name, name) + (f"^{power}" if power else "")

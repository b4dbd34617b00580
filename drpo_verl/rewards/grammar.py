"""LaTeX to sympy with math-verify's grammar, without its loose readings.

Four of them would let a wrong answer be equal to the truth: two numbers side by side as a sum ("4 6" and "2(8)" as
mixed numbers), a subscript of a number that is dropped, decimals as binary floats, and letters without their case.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import ModuleType
from typing import Any

from drpo_verl.rewards.packages import require

_WHOLE = r"(?<![0-9a-zA-Z.,)}^_!])([0-9]+)"
_MIXED = re.compile(rf"{_WHOLE}\s*\\frac\{{([0-9]+)\}}\{{([0-9]+)\}}|{_WHOLE} +([0-9]+)/([0-9]+)(?![0-9])")
_SHORT_PAIR = re.compile(r"\\(frac|binom)\s*([0-9])\s*([0-9])(?![0-9])")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*\\?%")
_SCIENTIFIC = re.compile(r"(?<![0-9a-zA-Z.])([0-9]+(?:\.[0-9]*)?)[eE]([+-]?[0-9]+)(?![0-9a-zA-Z.])")
_ORDERS = ((r"\lt ", "<"), (r"\gt ", ">"), ("<=", r"\leq "), (">=", r"\geq "), ("!=", r"\neq "))
_SIDE_BY_SIDE = re.compile(r"(?<![0-9_^])[0-9]+\s+\.?[0-9]")
_COMPLEX = re.compile(r"(?<![a-zA-Z\\])i(?![a-zA-Z])|\\mathrm\{i\}|\\text\{i\}|\\imath")


class NotReadError(Exception):
    """The grammar can not read a text."""


def load() -> ModuleType:
    """Import the grammar, which takes seconds.

    Raises:
        ImportError: it is not installed.
    """
    return require("latex2sympy2_extended", "math-verify")


def read(latex: str) -> Any:
    """Return what LaTeX says, unevaluated: a sympy expression, set, tuple, relation or matrix.

    Raises:
        NotReadError: it is not in the grammar.
    """
    from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex

    as_written = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
    )
    text = normalize_latex(_unambiguous(latex), as_written)
    if not text:
        raise NotReadError("nothing to read")
    imaginary = bool(_COMPLEX.search(text))
    try:
        value = _replace_letters(_parser()(is_real=not imaginary).parse(text), imaginary)
    except Exception as error:  # of any kind: the grammar was written for LaTeX, and an answer may be anything
        raise NotReadError(repr(error)) from error
    if text.startswith("[") and getattr(value, "is_FiniteSet", False):
        raise NotReadError("an interval of one point, or a vector with equal elements")
    return value


def _unambiguous(text: str) -> str:
    text = _SHORT_PAIR.sub(r"\\\1{\2}{\3}", text).replace(r"\varnothing", r"\emptyset")
    for written, grammatical in _ORDERS:
        text = text.replace(written, grammatical)
    text = _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", text)
    text = _PERCENT.sub(r"(\1\\cdot\\frac{1}{100})", _REPEATING.sub(_repeating, _MIXED.sub(_mixed, text)))
    if _SIDE_BY_SIDE.search(text):
        raise NotReadError("numbers side by side")
    return text


def _mixed(match: re.Match[str]) -> str:
    whole, numerator, denominator = (group for group in match.groups() if group is not None)
    if int(numerator) >= int(denominator):
        return rf"{whole}\cdot\frac{{{numerator}}}{{{denominator}}}"
    return rf"({whole}+\frac{{{numerator}}}{{{denominator}}})"


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, repeated = match.groups()
    numerator = int(whole + fixed + repeated) - int(whole + fixed or "0")
    return rf"\frac{{{numerator}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"


def _replace_letters(value: Any, imaginary: bool) -> Any:
    import sympy

    names = {"e": sympy.E, "E": sympy.Symbol("E", real=True)}
    if imaginary:
        names["i"] = sympy.I
    letters = {symbol: names[symbol.name] for symbol in value.free_symbols if symbol.name in names}
    return value.xreplace(letters) if letters else value


@lru_cache(maxsize=1)
def _parser() -> type:
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy

    class Parser(_Latex2Sympy):  # type: ignore[misc]
        def __init__(self, is_real: bool) -> None:
            super().__init__(None, is_real, True, ConversionConfig(lowercase_symbols=False))

        def parse_number(self, text: str) -> Any:
            return sympy.Rational(text.replace(",", ""))

        def convert_atom(self, atom: Any) -> Any:
            if atom.number_subexpr() and atom.number_subexpr().subexpr():
                raise NotReadError("a number with a subscript")
            return super().convert_atom(atom)

        def convert_postfix_list(self, arr: list[Any], i: int = 0) -> Any:
            first = self.convert_postfix(arr[i])
            if i == len(arr) - 1 or not isinstance(first, (sympy.Expr, sympy.Matrix)):
                return super().convert_postfix_list(arr, i)  # one factor, or a derivative
            rest = self.convert_postfix_list(arr, i + 1)
            matrices = any(getattr(factor, "is_Matrix", False) for factor in (first, rest))
            return self.mat_mul_flat(first, rest) if matrices else self.mul_flat(first, rest)

    return Parser

"""Whether two mathematical objects are the same: exactly, or to 50 digits relative where sympy can not decide exactly.

math-verify's own comparison rounds to 6 decimals and drops factors below 1e-15, and so takes different numbers for
equal. Whatever is not found to be equal here counts as different. Calls may take for ever: see `judge`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

_DIGITS = 50
_SPARE_DIGITS = 15
_CANCELLED_DIGITS = 400
"""Leading digits that may cancel in a difference before its value counts as unknown."""

# Where formulas with symbols are compared: fractions of both signs that no coincidence is made of.
_VALUES = tuple(
    sympy.Rational(p, q) for p, q in ((37, 19), (-29, 23), (5, 7), (-11, 13), (101, 31), (-3, 17), (43, 41))
)
_POINTS = 6
_ENOUGH_POINTS = 3
_EXACT = 2_000_000
_EXACT_FACTORIAL = 100_000
"""Logarithm of a power, and a factorial's argument, up to which numbers are computed exactly: in less than a second."""


def same(answer: Any, truth: Any) -> bool:
    """Return whether two objects of `grammar.read` are the same number, formula, set, interval, tuple or relation."""
    if _is_relation(answer) and _is_relation(truth):
        return _same_relations(answer, truth)
    if _is_relation(answer) or _is_relation(truth):
        return _same_solutions(answer, truth)
    if isinstance(answer, sympy.Set | sympy.Tuple) or isinstance(truth, sympy.Set | sympy.Tuple):
        return _same_collections(answer, truth)
    if isinstance(answer, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(
        truth, sympy.MatrixBase | sympy.MatrixExpr
    ):
        return _same_matrices(answer, truth)
    return isinstance(answer, sympy.Expr) and isinstance(truth, sympy.Expr) and _same_values(answer, truth)


# --- numbers and formulas ---


def _same_values(a: sympy.Expr, b: sympy.Expr) -> bool:
    infinities = (sympy.oo, -sympy.oo)
    if a in infinities or b in infinities:
        return bool(a == b)
    if a.has(sympy.nan, sympy.zoo, *infinities) or b.has(sympy.nan, sympy.zoo, *infinities):
        return False
    if a == b:
        return True
    a, b = _without_functions(a), _without_functions(b)
    agreed = 0
    for point in _points(a, b):
        first, second = _evaluate(a, point), _evaluate(b, point)
        if first is None or second is None:
            continue
        if not _close(first, second):
            return False
        agreed += 1
    if agreed >= _ENOUGH_POINTS or (agreed and not a.free_symbols | b.free_symbols):
        return not _differ_exactly(a, b)
    return bool(sympy.simplify((a - b).doit()) == 0)


def _points(*expressions: sympy.Expr) -> list[dict[sympy.Symbol, sympy.Rational]]:
    symbols = sorted(set().union(*(each.free_symbols for each in expressions)), key=str)
    if not symbols:
        return [{}]
    return [
        {
            symbol: _VALUES[(point + 2 * number) % len(_VALUES)] + number // len(_VALUES)
            for number, symbol in enumerate(symbols)
        }
        for point in range(_POINTS)
    ]


def _evaluate(expression: sympy.Expr, point: dict[sympy.Symbol, sympy.Rational]) -> Any:
    # None where sympy can not tell the value to so many digits, as of a difference that may be 0.
    try:
        value = expression.evalf(_DIGITS + _SPARE_DIGITS, subs=point or None, maxn=_CANCELLED_DIGITS, strict=True)
    except Exception:
        return None
    return value if value.is_number and value.is_finite and value != 0 and not value.atoms(sympy.Symbol) else None


def _close(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= abs(b) * sympy.Float(10, 30) ** -_DIGITS)


def _differ_exactly(a: sympy.Expr, b: sympy.Expr) -> bool:
    # 1 - 1/7^901 and 1 are equal to 50 digits: rational numbers of bearable size are compared exactly.
    for each in (a, b):
        if each.free_symbols or each.atoms(sympy.Function) - each.atoms(sympy.factorial, sympy.binomial, sympy.Abs):
            return False
        if each.atoms(sympy.NumberSymbol, sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit) or each.has(sympy.I):
            return False
        arguments = [call.args[0] for call in each.atoms(sympy.factorial)]
        if not all(n.is_integer and _size(n) <= _EXACT_FACTORIAL for n in arguments):
            return False
        if not all(
            p.exp.is_integer and _size(p.exp) * _size(sympy.log(p.base)) <= _EXACT for p in each.atoms(sympy.Pow)
        ):
            return False
    return bool((a - b).doit().is_zero is False)


def _size(number: sympy.Expr) -> float:
    value = number.evalf(_SPARE_DIGITS)
    return abs(complex(value)) if value.is_finite else 0.0  # of the logarithm of 0


def _without_functions(expression: Any) -> Any:
    calls = expression.atoms(AppliedUndef)
    return expression.xreplace({call: sympy.Symbol(str(call), real=True) for call in calls}) if calls else expression


# --- relations ---


def _is_relation(value: Any) -> bool:
    return isinstance(value, Relational) or (isinstance(value, sympy.And) and bool(value.args))


def _links(relation: Any) -> list[Any]:
    return list(getattr(relation, "_unsorted_args", relation.args)) if isinstance(relation, sympy.And) else [relation]


def _same_relations(a: Any, b: Any) -> bool:
    first, second = _links(a), _links(b)
    if all(isinstance(link, sympy.Eq) for link in (*first, *second)):
        first, second = [_ends(first)], [_ends(second)]
    if len(first) == len(second) and all(_same_relation(*pair) for pair in zip(first, second, strict=True)):
        return True
    sets = _solutions(a), _solutions(b)
    return None not in sets and a.free_symbols == b.free_symbols and _same_collections(*sets)


def _ends(links: list[Any]) -> Any:
    # x = 2 + 3 = 5 says x = 5.
    return sympy.Eq(links[0].lhs, links[-1].rhs, evaluate=False)


def _same_relation(a: Any, b: Any) -> bool:
    if type(a) is type(b) and same(a.lhs, b.lhs) and same(a.rhs, b.rhs):
        return True
    if not all(isinstance(side, sympy.Expr) for side in (a.lhs, a.rhs, b.lhs, b.rhs)):
        return False
    order = (sympy.StrictLessThan, sympy.LessThan)
    if type(a) is not type(b.reversed) and type(a) is not type(b):
        return False
    # The same up to a constant factor, which is positive between inequalities turned the same way.
    one, other = (_without_functions(each.lhs - each.rhs) * (-1 if isinstance(each, order) else 1) for each in (a, b))
    equation = isinstance(a, sympy.Eq | sympy.Ne)
    if equation:
        one, other = (sympy.fraction(sympy.together(each.doit()))[0] for each in (one, other))
    points = _points(one, other)
    if points == [{}]:
        return False
    values = [(_evaluate(one, point), _evaluate(other, point)) for point in points]
    ratios = [first / second for first, second in values if first is not None and second is not None]
    if len(ratios) < _ENOUGH_POINTS or not all(_close(left, right) for left, right in pairwise(ratios)):
        return False
    return equation or bool(ratios[0].is_real and ratios[0] > 0)


def _same_solutions(a: Any, b: Any) -> bool:
    a, b = (_solution(each) if _is_relation(each) else each for each in (a, b))
    return a is not None and b is not None and same(a, b)


def _solution(relation: Any) -> Any:
    """Return the value that an equation gives to a name ("x = 5", "f(x) = x + 1"), or the set of an inequality."""
    links = _links(relation)
    if not all(isinstance(link, sympy.Eq) for link in links):
        return _solutions(relation)
    value = links[-1].rhs
    named = all(_is_name(link.lhs) or same(link.lhs, value) for link in links)
    return value if named else None


def _is_name(value: Any) -> bool:
    if isinstance(value, sympy.Tuple):
        return all(_is_name(each) for each in value)
    if isinstance(value, sympy.Pow) or value.as_coeff_Mul()[0] != 1:
        return False  # -x and 1/x: what x is, they are not
    return bool(value.free_symbols) and value.atoms(sympy.Number) <= {sympy.Integer(-1)}


def _solutions(relation: Any) -> Any:
    if isinstance(relation, sympy.Eq) and isinstance(relation.rhs, sympy.Set) and _is_name(relation.lhs):
        return relation.rhs  # x in [1, 2]
    relation = _without_functions(relation)
    if any(isinstance(link, sympy.Eq) for link in _links(relation)) or len(relation.free_symbols) != 1:
        return None
    try:
        return relation.as_set()
    except Exception:
        return None


# --- sets, tuples, intervals, matrices ---


def _same_collections(a: Any, b: Any) -> bool:
    a, b = _gathered(a), _gathered(b)
    if isinstance(a, sympy.FiniteSet) and isinstance(b, sympy.FiniteSet):
        return _contains(a, b) and _contains(b, a)
    if isinstance(a, sympy.FiniteSet | sympy.Tuple) or isinstance(b, sympy.FiniteSet | sympy.Tuple):
        first, second = _in_order(a), _in_order(b)
        if first is None or second is None or len(first) != len(second):
            return False
        return all(same(x, y) for x, y in zip(first, second, strict=True))
    return isinstance(a, sympy.Set) and isinstance(b, sympy.Set) and _same_sets(a, b)


def _same_sets(a: sympy.Set, b: sympy.Set) -> bool:
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        ends = a.left_open == b.left_open and a.right_open == b.right_open
        return bool(ends) and same(a.start, b.start) and same(a.end, b.end)
    a, b = a.doit(), b.doit()
    if isinstance(a, sympy.Union) and isinstance(b, sympy.Union) and _contains(a, b) and _contains(b, a):
        return True
    return bool(a == b or a.symmetric_difference(b) == sympy.S.EmptySet)


def _contains(a: sympy.Set, b: sympy.Set) -> bool:
    return all(any(same(x, y) for x in a.args) for y in b.args)


def _gathered(value: Any) -> Any:
    """Return {x = 1, x = 2} as {1, 2}; and a value as a set of its own."""
    if not isinstance(value, sympy.Set | sympy.Tuple):
        return sympy.FiniteSet(value)
    elements: list[Any] = list(value.args) if isinstance(value, sympy.FiniteSet) else []
    equations = bool(elements) and all(isinstance(each, sympy.Eq) for each in elements)
    if equations and len({each.lhs for each in elements}) == 1 and _is_name(elements[0].lhs):
        return sympy.FiniteSet(*(each.rhs for each in elements))
    return value


def _in_order(value: Any) -> list[Any] | None:
    """Return the elements of a tuple, of a list without braces, or of an open interval, which looks like a pair."""
    if isinstance(value, sympy.Interval):
        return [value.start, value.end] if value.is_open else None
    if isinstance(value, sympy.FiniteSet | sympy.Tuple):
        return list(getattr(value, "_unsorted_args", value.args))
    return None


def _same_matrices(a: Any, b: Any) -> bool:
    a, b = a.doit(), b.doit()
    if not isinstance(a, sympy.MatrixBase) or not isinstance(b, sympy.MatrixBase) or a.shape != b.shape:
        return False
    return all(same(x, y) for x, y in zip(a.flat(), b.flat(), strict=True))

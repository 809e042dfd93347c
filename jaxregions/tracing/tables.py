"""Exact tables of univariate piecewise-affine functions, elementwise over arrays.

A table says what an elementwise chain (relu, clip, where, a comparison, a mask times its input)
does to its origin u: breakpoints tau_1 < ... < tau_K and on each piece alpha u + beta. Coefficients
are exact rationals in arrays that broadcast against u, or tracers when parameters are traced;
Python's Fraction(0) and Fraction(1) stay structural, so that 0 * tracer is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from jaxregions._records import is_traced

__all__ = ["Table", "Unprovable", "coefficient"]

_MOST_RATIONALS = 1 << 14


class Unprovable(Exception):
    """A property that the tracer needs cannot be proven; the message says which."""


class Table(NamedTuple):
    """K breakpoints and K + 1 pieces (alpha, beta); see the module."""

    taus: tuple[Any, ...]
    pieces: tuple[tuple[Any, Any], ...]

    @staticmethod
    def identity() -> Table:
        return Table((), ((Fraction(1), Fraction(0)),))

    @staticmethod
    def constant(value: Any) -> Table:
        return Table((), ((Fraction(0), value),))


def coefficient(value: Any) -> Any:
    """A constant as a Fraction, an array of them as small as broadcasting allows, or a tracer."""
    if is_traced(value):
        return value
    array = np.asarray(value)
    for axis in range(array.ndim):
        first = array.take([0], axis) if array.shape[axis] else array
        if array.shape[axis] > 1 and (array == first).all():
            array = first
    if array.size > _MOST_RATIONALS:
        raise Unprovable(
            f"an elementwise constant with {array.size} different entries on a bent value"
        )
    if not np.isfinite(array.astype(np.float64)).all():
        raise Unprovable("an infinite constant")
    if array.size == 1:
        return Fraction(array.item())
    out = np.empty(array.shape, object)
    out.ravel()[:] = [Fraction(v) for v in array.ravel().tolist()]
    return out


def is_zero(x: Any) -> bool:
    return isinstance(x, Fraction) and x == 0


def _plain(x: Any, *others: Any) -> Any:
    """Rationals as floats when they meet a tracer."""
    if not is_traced(*others) or is_traced(x):
        return x
    return float(x) if isinstance(x, Fraction) else np.asarray(x, np.float64)


def times(a: Any, b: Any) -> Any:
    if is_zero(a) or is_zero(b):
        return Fraction(0)
    if isinstance(a, Fraction) and a == 1:
        return b
    if isinstance(b, Fraction) and b == 1:
        return a
    return _plain(a, b) * _plain(b, a)


def plus(a: Any, b: Any) -> Any:
    if is_zero(a):
        return b
    if is_zero(b):
        return a
    return _plain(a, b) + _plain(b, a)


def minus(a: Any, b: Any) -> Any:
    if a is b:
        return Fraction(0)
    return plus(a, times(Fraction(-1), b))


def sign(x: Any) -> int | None:
    """The common sign of all entries; None if they differ or are traced."""
    if is_traced(x):
        return None
    entries = {(v > 0) - (v < 0) for v in np.ravel(np.asarray(x, object)).tolist()}
    return entries.pop() if len(entries) == 1 else None


def _require_sign(x: Any, what: str) -> int:
    answer = sign(x)
    if answer is None:
        raise Unprovable(f"{what} is not the same for all entries, or depends on traced parameters")
    return answer


def map_pieces(table: Table, function: Callable[[Any, Any], tuple[Any, Any]]) -> Table:
    return Table(table.taus, tuple(function(a, b) for a, b in table.pieces))


def scaled(table: Table, factor: Any) -> Table:
    return map_pieces(table, lambda a, b: (times(a, factor), times(b, factor)))


def _merged(left: Table, right: Table) -> tuple[tuple[Any, ...], list[tuple[Any, Any]]]:
    """Common breakpoints and, per piece, the pair of (alpha, beta) of both tables."""
    taus: list[Any] = []
    pairs = [(left.pieces[0], right.pieces[0])]
    i = j = 0
    while i < len(left.taus) or j < len(right.taus):
        if i == len(left.taus):
            order = 1
        elif j == len(right.taus):
            order = -1
        else:
            gap = minus(left.taus[i], right.taus[j])
            order = _require_sign(gap, "the order of two breakpoints")
        taus.append(left.taus[i] if order <= 0 else right.taus[j])
        i, j = i + (order <= 0), j + (order >= 0)
        pairs.append((left.pieces[i], right.pieces[j]))
    return tuple(taus), pairs


def combine(left: Table, right: Table, function: Callable[..., tuple[Any, Any]]) -> Table:
    """function((alpha, beta), (alpha', beta')) on every common piece."""
    taus, pairs = _merged(left, right)
    return Table(taus, tuple(function(a, b) for a, b in pairs))


def added(left: Table, right: Table) -> Table:
    return combine(left, right, lambda p, q: (plus(p[0], q[0]), plus(p[1], q[1])))


def multiplied(left: Table, right: Table) -> Table:
    def product(p, q):
        if is_zero(p[0]):
            return times(p[1], q[0]), times(p[1], q[1])
        if is_zero(q[0]):
            return times(q[1], p[0]), times(q[1], p[1])
        raise Unprovable("a product of two input-dependent values")

    return combine(left, right, product)


def positive(table: Table) -> Table:
    """1 where the table is > 0, else 0 (its value at a zero does not matter)."""
    taus: list[Any] = []
    pieces: list[tuple[Any, Any]] = []
    edges = (None, *table.taus, None)
    for low, high, (a, b) in zip(edges, edges[1:], table.pieces, strict=False):
        if low is not None:
            taus.append(low)
        if is_zero(a):
            pieces.append((Fraction(0), _step(_require_sign(b, "the sign of a constant") > 0)))
            continue
        slope = _require_sign(a, "the sign of a slope")
        if slope == 0:
            raise Unprovable("a slope that is zero for some entries")
        root = minus(Fraction(0), b) if is_one(a) else divide(minus(Fraction(0), b), a)
        after_low = (
            1 if low is None else _require_sign(minus(root, low), "the place of a breakpoint")
        )
        before_high = (
            1 if high is None else _require_sign(minus(high, root), "the place of a breakpoint")
        )
        if after_low <= 0:
            pieces.append((Fraction(0), _step(slope > 0)))
        elif before_high <= 0:
            pieces.append((Fraction(0), _step(slope < 0)))
        else:
            taus.append(root)
            pieces += [(Fraction(0), _step(slope < 0)), (Fraction(0), _step(slope > 0))]
    return Table(tuple(taus), tuple(pieces))


def is_one(x: Any) -> bool:
    return isinstance(x, Fraction) and x == 1


def divide(a: Any, b: Any) -> Any:
    return Fraction(0) if is_zero(a) else _plain(a, b) / _plain(b, a)


def _step(value: bool) -> Fraction:
    return Fraction(int(value))


def selected(predicate: Table, on_true: Table, on_false: Table) -> Table:
    """on_true where the 0/1 table is 1, on_false where it is 0."""
    taus, pairs = _merged(predicate, on_true)
    marked = Table(taus, tuple((truth, branch) for (_, truth), branch in pairs))
    taus, pairs = _merged(marked, on_false)
    return Table(taus, tuple(branch if truth == 1 else other for (truth, branch), other in pairs))


def maximum(left: Table, right: Table) -> Table:
    difference = added(left, scaled(right, Fraction(-1)))
    return selected(positive(difference), left, right)


def at_breakpoints(table: Table) -> list[Any]:
    """The jump of the function at every breakpoint."""
    jumps = []
    for tau, (a, b), (c, d) in zip(table.taus, table.pieces, table.pieces[1:], strict=False):
        jumps.append(plus(times(minus(c, a), tau), minus(d, b)))
    return jumps


def bends(table: Table) -> tuple[Any, ...]:
    """The breakpoints where a continuous table really changes slope.

    Raises:
      Unprovable: the function is not continuous there, or that cannot be shown.
    """
    found = []
    jumps = at_breakpoints(table)
    for tau, jump, (a, _), (c, _) in zip(
        table.taus, jumps, table.pieces, table.pieces[1:], strict=False
    ):
        if is_traced(jump):
            raise Unprovable("continuity cannot be shown while its parameters are traced")
        if np.any(np.asarray(jump, object) != 0):
            size = max(abs(float(v)) for v in np.ravel(np.asarray(jump, object)))
            place = np.ravel(np.asarray(tau, object))[0]
            raise Unprovable(
                f"it is not continuous: it jumps by up to {size:.3g}"
                + ("" if is_traced(tau) else f" where its argument is {float(place):.6g}")
            )
        change = minus(c, a)
        if is_traced(change) or np.any(np.asarray(change, object) != 0):
            found.append(tau)
    return tuple(found)


def composed(table: Table, line: tuple[Any, Any]) -> Table:
    """table(alpha u + beta) as a table of u; alpha of one sign."""
    alpha, beta = line
    if is_one(alpha) and is_zero(beta):
        return table
    pieces = tuple((times(a, alpha), plus(times(a, beta), b)) for a, b in table.pieces)
    if not table.taus:
        return Table((), pieces)
    direction = sign(alpha)
    if not direction:
        raise Unprovable("an elementwise chain that is rescaled by values of both signs or of none")
    taus = tuple(divide(minus(tau, beta), alpha) for tau in table.taus)
    return Table(taus, pieces) if direction > 0 else Table(taus[::-1], pieces[::-1])

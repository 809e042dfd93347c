"""Elementwise primitives as functions of exact tables."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from jaxregions.tracing import tables
from jaxregions.tracing.tables import Table, Unprovable

__all__ = ["AFFINE", "BATCHNORM_HINT", "BENDING", "table_of_primitive"]

BATCHNORM_HINT = (
    "; if this is BatchNorm in training mode, condition the model on a batch first: jr.condition"
)
Rule = Callable[[dict[str, Any], list[Table]], Table]


def table_of_primitive(name: str, params: dict[str, Any], parts: list[Table]) -> Table:
    """The table of primitive(parts).

    Raises:
      Unprovable: not piecewise affine, or not decidable for these coefficients.
    """
    return (AFFINE.get(name) or BENDING[name])(params, parts)


def _flat(table: Table) -> bool:
    return all(tables.is_zero(alpha) for alpha, _ in table.pieces)


def _negative(table: Table) -> Table:
    return tables.scaled(table, Fraction(-1))


def _minus(left: Table, right: Table) -> Table:
    return tables.added(left, _negative(right))


def _product(_, parts):
    try:
        return tables.multiplied(*parts)
    except Unprovable as error:
        raise Unprovable(f"{error}{BATCHNORM_HINT}") from error


def _quotient(_, parts):
    top, bottom = parts
    if not _flat(bottom):
        raise Unprovable(f"a division by an input-dependent value{BATCHNORM_HINT}")
    return tables.combine(
        top, bottom, lambda p, q: (tables.divide(p[0], q[1]), tables.divide(p[1], q[1]))
    )


def _power(params, parts):
    (base,), exponent = parts, params.get("y", 2)
    if exponent == 1:
        return base
    if _flat(base) and exponent >= 0:
        return tables.map_pieces(base, lambda a, b: (a, b**exponent))
    raise Unprovable(f"a power of an input-dependent value{BATCHNORM_HINT}")


def _minimum(left: Table, right: Table) -> Table:
    return _negative(tables.maximum(_negative(left), _negative(right)))


def _select(_, parts):
    if len(parts) != 3:
        raise Unprovable(f"a selection among {len(parts) - 1} cases")
    predicate, on_false, on_true = parts
    return tables.selected(predicate, on_true, on_false)


def _unequal(_, parts):
    """!= is 1 almost everywhere unless both sides agree on a whole piece."""

    def piece(a, b):
        if tables.is_zero(a) and tables.sign(b) is None:
            raise Unprovable("an equality that holds for some entries only")
        return Fraction(0), Fraction(int(not (tables.is_zero(a) and tables.sign(b) == 0)))

    return tables.map_pieces(_minus(*parts), piece)


def _not(_, parts):
    return tables.map_pieces(parts[0], lambda a, b: (a, 1 - b))


def _logic(function):
    def piece(p, q):
        return Fraction(0), Fraction(function(int(p[1]), int(q[1])))

    return lambda _, parts: tables.combine(parts[0], parts[1], piece)


AFFINE: dict[str, Rule] = {
    "add": lambda _, p: tables.added(*p),
    "add_any": lambda _, p: tables.added(*p),
    "sub": lambda _, p: _minus(*p),
    "neg": lambda _, p: _negative(p[0]),
    "mul": _product,
    "div": _quotient,
    "convert_element_type": lambda _, p: p[0],
    "integer_pow": _power,
    "square": _power,
}
BENDING: dict[str, Rule] = {
    "max": lambda _, p: tables.maximum(*p),
    "min": lambda _, p: _minimum(*p),
    "abs": lambda _, p: tables.maximum(p[0], _negative(p[0])),
    "sign": lambda _, p: _minus(tables.positive(p[0]), tables.positive(_negative(p[0]))),
    "clamp": lambda _, p: _minimum(tables.maximum(p[1], p[0]), p[2]),
    "gt": lambda _, p: tables.positive(_minus(*p)),
    "ge": lambda _, p: tables.positive(_minus(*p)),
    "lt": lambda _, p: tables.positive(_minus(p[1], p[0])),
    "le": lambda _, p: tables.positive(_minus(p[1], p[0])),
    "ne": _unequal,
    "eq": lambda e, p: _not(e, (_unequal(e, p),)),
    "not": _not,
    "and": _logic(lambda a, b: a & b),
    "or": _logic(lambda a, b: a | b),
    "xor": _logic(lambda a, b: a ^ b),
    "select_n": _select,
}

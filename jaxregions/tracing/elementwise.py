"""The rule of elementwise primitives: extend the exact table of a chain, or end the chain."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from jaxregions._records import is_traced
from jaxregions.tracing import tables
from jaxregions.tracing.contests import pair
from jaxregions.tracing.flatten import JaxprEqn, is_float, traced_as
from jaxregions.tracing.operations import AFFINE, BATCHNORM_HINT, table_of_primitive
from jaxregions.tracing.tables import Table, Unprovable
from jaxregions.tracing.walk import Slot, Walk, is_slot

__all__ = ["elementwise"]

_SUMS = {"add", "add_any", "sub"}
_POWERS = {"integer_pow", "square"}
_COMPARISONS = {"gt", "ge", "lt", "le"}


def elementwise(walk: Walk, eqn: JaxprEqn, operands: list[Any], where: str) -> list[Any]:
    name, slots = eqn.primitive.name, [o for o in operands if is_slot(o)]
    if any(s.comparison for s in slots):
        return [_chosen(walk, name, operands)]
    if name == "select_n" and not is_slot(operands[0]):
        return _linear(walk, eqn, operands)  # a constant mask: linear in the cases
    if not any(s.bent for s in slots):
        if _is_affine(name, operands):
            (out,) = walk.emit(eqn, operands, slots[0].depth)
            out.parent = (slots[0], eqn, operands)
            return [out]
        if name in _SUMS:
            return _linear(walk, eqn, operands)
    passed = _never_binding(name, operands)
    if passed is not None:
        return [passed]
    origin = walk.common_origin(slots)
    if origin is None:
        return [_unrelated(walk, eqn, operands, where)]
    try:
        table = table_of_primitive(name, eqn.params, [walk.table_of(o, origin) for o in operands])
    except Unprovable as reason:
        return _after_flush(walk, eqn, operands, where, reason)
    constant = _constant(table, *traced_as(eqn.outvars[0]))
    if constant is not None:
        return [constant]
    (out,) = walk.emit(eqn, operands, origin.depth)
    out.origin, out.table = origin, table
    bent_before = [s.made for s in slots if s.bent] if name in AFFINE else []
    out.made = next(iter(bent_before), f"primitive '{name}' at {where}")
    return [out]


def _linear(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    operands = [walk.flush(o) for o in operands]
    return walk.emit(eqn, operands, max(o.depth for o in operands if is_slot(o)))


def _is_affine(name: str, operands: list[Any]) -> bool:
    """Whether the one slot among the operands enters affinely, without looking at numbers."""
    if name not in AFFINE or name in _POWERS or sum(map(is_slot, operands)) != 1:
        return False
    return not (name == "div" and is_slot(operands[1]))


def _never_binding(name: str, operands: list[Any]) -> Slot | None:
    """The slot of max(slot, -inf) or min(slot, inf)."""
    if name not in ("max", "min") or all(map(is_slot, operands)):
        return None
    slot, bound = operands if is_slot(operands[0]) else operands[::-1]
    neutral = -np.inf if name == "max" else np.inf
    return slot if not is_traced(bound) and (bound == neutral).all() else None


def _constant(table: Table, shape: tuple[int, ...], dtype: Any) -> Any:
    """The array of a table that is one number, exactly, whatever the input; None otherwise."""
    values = {value for _, value in table.pieces if isinstance(value, Fraction)}
    flat = all(tables.is_zero(a) and isinstance(b, Fraction) for a, b in table.pieces)
    if not flat or len(values) != 1:
        return None
    (value,) = values
    return np.full(shape, float(value), dtype) if float(value) == value else None


def _after_flush(
    walk: Walk, eqn: JaxprEqn, operands: list[Any], where: str, reason: Unprovable
) -> list[Any]:
    """End the chain here and try again on its value; the tables did not suffice."""
    name, slots = eqn.primitive.name, [o for o in operands if is_slot(o)]
    if name in _SUMS or _is_affine(name, operands):
        return _linear(walk, eqn, operands)
    if name in ("max", "min") and not any(s.bent for s in slots):
        return [pair(walk, operands, smallest=name == "min")]
    if any(s.bent and is_float(s) for s in slots):
        flat = [walk.flush(o) if is_float(o) else o for o in operands]
        return elementwise(walk, eqn, flat, where)
    raise reason


def _unrelated(walk: Walk, eqn: JaxprEqn, operands: list[Any], where: str) -> Slot:
    """Two values that are no functions of one common value."""
    name = eqn.primitive.name
    if name in _SUMS:
        return _linear(walk, eqn, operands)[0]
    if name in ("max", "min"):
        return pair(walk, [walk.flush(o) for o in operands], smallest=name == "min")
    if name in _COMPARISONS:
        operands = [walk.flush(o) for o in operands]
        (out,) = walk.emit(eqn, operands, max(o.depth for o in operands))
        out.comparison, out.made = (name, operands), f"primitive '{name}' at {where}"
        return out
    if name in ("mul", "div"):
        raise Unprovable(f"a product of two input-dependent values{BATCHNORM_HINT}")
    if name == "select_n":
        raise Unprovable("its branches do not provably agree where the predicate changes")
    raise Unprovable("values that do not come elementwise from one common value")


def _chosen(walk: Walk, name: str, operands: list[Any]) -> Slot:
    """where(a > b, a, b) and its like: a maximum or minimum of a and b."""
    predicate = next(o for o in operands if is_slot(o) and o.comparison)
    if name == "select_n" and len(operands) == 3 and predicate is operands[0]:
        compared, (a, b) = predicate.comparison
        on_false, on_true = map(walk.flush, operands[1:])
        if (on_true is a and on_false is b) or (on_true is b and on_false is a):
            greater = compared in ("gt", "ge")
            return pair(walk, [a, b], smallest=greater != (on_true is a))
    return walk.flush(predicate)  # says that its value jumps

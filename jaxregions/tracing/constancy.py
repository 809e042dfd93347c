"""Which entries of a value do not depend on the input, and what they are.

Padding of a pooling window, masked entries and units without weights are constants inside arrays
that otherwise vary. Comparisons among constants are no switching values, and infinite constants
must not become any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxregions._records import is_traced
from jaxregions.tracing.flatten import is_float
from jaxregions.tracing.operations import AFFINE, BENDING
from jaxregions.tracing.tables import Unprovable

__all__ = ["Fixed", "after", "constant", "live"]

_PLACING = {"concatenate", "stack", "pad", "scatter", "dynamic_update_slice", "select_n"}
_BILINEAR = {"dot_general", "conv_general_dilated"}


IsSlot = Callable[[Any], bool]


class Fixed(NamedTuple):
    """values: what the entries are where ``varies`` is False (anything elsewhere)."""

    values: np.ndarray
    varies: np.ndarray


def constant(value: Any) -> Fixed:
    """Constancy of a constant: a float array; rationals and tracers count as some finite number."""
    known = value if isinstance(value, np.ndarray) and is_float(value) else np.zeros(())
    return Fixed(known, np.zeros(known.shape, bool))


def live(left: Fixed | None, right: Fixed | None) -> tuple[np.ndarray, int] | None:
    """Entries whose difference can change sign, and how many are finite constants.

    Of the two sides, None is one that varies in all entries; None as the answer: all entries can.
    """
    sides = [f for f in (left, right) if f is not None]
    if not sides:
        return None
    finite, varies = np.ones((), bool), np.asarray(len(sides) < 2)
    for side in sides:
        finite = finite & (side.varies | np.isfinite(side.values))
        varies = varies | side.varies
    return varies & finite, int((~varies & finite).sum())


def after(
    name: str, function: Callable[..., list[Any]], operands: list[Any], is_slot: IsSlot
) -> list[Fixed | None] | None:
    """Constancy of function(*operands); None where every entry of every output varies.

    Raises:
      Unprovable: an entry that is not a number, such as 0 * inf.
    """
    if not _may_fix(name, operands, is_slot):
        return None
    values, marks = [], []
    for o in operands:
        if is_slot(o):
            fixed = o.fixed or Fixed(np.zeros(o.shape, o.dtype), np.ones(o.shape, bool))
            values.append(np.where(fixed.varies, np.zeros((), o.dtype), fixed.values))
            marks.append(fixed.varies)
        else:
            values.append(o)
            marks.append(o)
    with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
        out = [np.asarray(v) for v in function(*values)]
        varies = _varies(name, function, operands, marks, is_slot)
    answer: list[Fixed | None] = []
    for value, vary in zip(out, varies, strict=True):
        if is_float(value) and (np.isnan(value).any() or not np.isfinite(value[vary]).all()):
            raise Unprovable("an infinite constant that enters more than a maximum")
        answer.append(None if vary.all() else Fixed(value, vary))
    return answer


def _may_fix(name: str, operands: list[Any], is_slot: IsSlot) -> bool:
    constants = [o for o in operands if not is_slot(o)]
    if is_traced(constants):
        return False
    if any(is_slot(o) and o.fixed is not None for o in operands) or name == "fill":
        return True
    if name in _PLACING:
        return any(is_float(o) for o in constants)
    return (name in _BILINEAR or name == "mul") and any((o == 0).any() for o in constants)


def _varies(name, function, operands, marks, is_slot) -> list[np.ndarray]:
    pairs = list(zip(operands, marks, strict=True))
    if name in _BILINEAR:
        count = function(*((m if is_slot(o) else o != 0).astype(o.dtype) for o, m in pairs))
        return [np.asarray(c) > 0 for c in count]
    if name in (*AFFINE, *BENDING) and not (name == "select_n" and not is_slot(operands[0])):
        mask = np.logical_or.reduce(np.broadcast_arrays(*(m for o, m in pairs if is_slot(o))))
        if name == "mul":
            for o in operands:
                mask = mask if is_slot(o) else mask & (o != 0)
        return [mask]
    # What is left moves, adds and compares: NaN spreads exactly where an entry varies.
    nan = [np.where(m, np.nan, 0.0).astype(o.dtype) if is_slot(o) else _blank(o) for o, m in pairs]
    return [np.isnan(np.asarray(v)) for v in function(*nan)]


def _blank(constant: Any) -> Any:
    return np.zeros_like(constant) if is_float(constant) else constant

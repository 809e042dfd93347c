"""The table primitive -> error rule: how far a float64 result may be from the exact one.

Every rule is interval arithmetic around the computed value: inherited error and the rounding of
the operation itself, which is relative (``U``, ``gamma``): an exact zero stays an exact zero.
Numbers below the normal range round, or are read as zero, with an absolute error far below
``TINY``; it is added only where an operand is not exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.exact import gamma
from jaxregions.tracing.flatten import bind, is_identity
from jaxregions.tracing.tracked import (
    SMALL,
    TINY,
    UP,
    Tracked,
    U,
    as_float,
    error_of,
    magnitude,
    most,
    nonzero,
    norm2,
    norm_of,
    scale_of,
    tightened,
    underflow,
)

__all__ = ["MOVES", "LinearNorms", "added", "minus", "tracked"]


class LinearNorms(NamedTuple):
    """Norms of the matrix W of x -> W x, rounded up; entries follow the shape of the output.

    row: sum_j |w_ij|; None where length times the Euclidean norm is as good.
    length: (sum_j w_ij^2)^(1/2), at least ``FLOOR`` for a row that is not zero; longest: the most.
    operator: the largest singular value, at most.
    frobenius: (sum_i length_i^2)^(1/2).
    terms: the most products that one output sums.
    """

    row: Any
    length: Any
    longest: Any
    operator: Any
    frobenius: Any
    terms: Any


Rule = Callable[[Any, list[Tracked], Any], list[Tracked]]


def _unknown(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    """No rule: nothing is certain."""
    values = bind(eqn, *(p.value for p in parts))
    return [Tracked(v, jnp.full(jnp.shape(v), jnp.inf), jnp.inf) for v in values]


# Moving entries ---------------------------------------------------------------------------------

_MOVED = {
    "gather": (0,),
    "dynamic_slice": (0,),
    "dynamic_update_slice": (0, 1),
    "scatter": (0, 2),
}


def _move(eqn: Any, parts: list[Tracked], _: Any = None) -> list[Tracked]:
    """The same operation on the errors."""
    name = eqn.primitive.name
    first = 1 if name == "select_n" else 0
    moved = _MOVED.get(name, range(first, len(parts)))
    values = bind(eqn, *(p.value for p in parts))
    errors = bind(eqn, *(error_of(p) if i in moved else p.value for i, p in enumerate(parts)))
    size = sum(math.prod(jnp.shape(parts[i].value)) for i in moved)
    if name == "gather" or sum(math.prod(v.shape) for v in values) > size:  # it may repeat entries
        return [Tracked(v, e) for v, e in zip(values, errors, strict=True)]
    norms = [norm_of(parts[i], jnp.shape(parts[i].value)) for i in moved]
    largest = reduce(jnp.maximum, [most(parts[i]) for i in moved])
    if len(norms) == 1:
        known = norms[0], parts[moved[0]].scale, largest
    else:
        known = reduce(jnp.hypot, norms) * (1 + gamma(8 * len(norms), np.float64)), None, largest
    return [Tracked(v, e, *known) for v, e in zip(values, errors, strict=True)]


def _identity(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:  # noqa: ARG001
    return parts[:1]


# Linear -----------------------------------------------------------------------------------------


def _matrix(eqn: Any, parts: list[Tracked], norms: LinearNorms | None) -> list[Tracked]:
    """A product with constants: |W e|_i <= min(row_i max|e|, length_i |e|_2), rounding alike."""
    if norms is None:
        return _unknown(eqn, parts, None)
    (x,) = (p for p in parts if p.error is not None)
    (out,) = bind(eqn, *(p.value for p in parts))
    size, height = math.prod(jnp.shape(x.value)), norm2(x.value)
    norm, largest = norm_of(x, jnp.shape(x.value)), most(x)
    if norms.row is not None:
        norm = jnp.minimum(norm, math.sqrt(size) * UP * largest)
    # length >= FLOOR, so this covers underflow of n products.
    live = jnp.where((height > 0) | (largest > 0), SMALL, 0.0)
    rounding = (norms.terms + 1) * (U * (1 + gamma(64, np.float64))) / (1 - norms.terms * U)
    rounded = rounding * (height + live) + live
    # Partial sums are below length * height: no overflow goes unnoticed.
    rounded = jnp.where(norms.frobenius * height < 2.0**1000, rounded, jnp.inf)
    error = norms.length * ((norm + rounded) * UP)
    if norms.row is not None:
        top = rounding * jnp.max(abs(x.value), initial=0.0)
        error = jnp.minimum(error, norms.row * (largest + top) + norms.length * live)
        error = jnp.where(rounded < jnp.inf, error, jnp.inf)
    return [
        Tracked(
            out,
            error,
            norms.operator * norm + norms.frobenius * rounded,
            (norms.operator + rounding * norms.frobenius) * (height + live) * UP,
            norms.longest * ((norm + rounded) * UP),
        )
    ]


def _summed(terms: Callable[[Any], int]) -> Rule:
    """Sums of entries."""

    def rule(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
        (x,) = parts
        relative = gamma(terms(eqn) + 8, np.float64)
        (out,), (sizes,), (errors,) = (
            bind(eqn, v) for v in (x.value, magnitude(x.value), error_of(x))
        )
        error = errors * (1 + relative) + relative * sizes
        return [Tracked(out, error * UP + jnp.where(sizes + errors > 0, TINY, 0.0))]

    return rule


def _reduced(eqn: Any) -> int:
    shape = eqn.invars[0].aval.shape
    return math.prod(shape[a] for a in eqn.params["axes"])


def _scatter(eqn: Any, parts: list[Tracked], relative: Any) -> list[Tracked]:
    """Placing, adding, subtracting, multiplying entries; ``relative``: the rounding on a place."""
    x, index, update = parts
    name = eqn.primitive.name
    if relative is None or (name == "scatter-mul" and update.error is not None):
        return _unknown(eqn, parts, None)
    if name == "scatter":
        return _move(eqn, parts)
    (out,) = bind(eqn, x.value, index.value, update.value)
    keys = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    combine = jax.lax.scatter_mul if name == "scatter-mul" else jax.lax.scatter_add

    def combined(a, b):
        return combine(a, index.value, b, **{k: eqn.params[k] for k in keys})

    sizes = combined(magnitude(x.value), magnitude(update.value))
    changes = magnitude(update.value) if name == "scatter-mul" else error_of(update)
    errors = combined(error_of(x), changes)
    live = nonzero(x) if name == "scatter-mul" else sizes + errors > 0
    error = errors * (1 + relative) + relative * sizes
    return [Tracked(out, error * UP + jnp.where(live, TINY, 0.0))]


# Elementwise ------------------------------------------------------------------------------------


def minus(a: Tracked, b: Tracked) -> Tracked:
    """a - b."""
    return _sum(a, b, as_float(a.value) - as_float(b.value))


def added(a: Tracked, b: Tracked) -> Tracked:
    """a + b."""
    return _sum(a, b, as_float(a.value) + as_float(b.value))


def _sum(a: Tracked, b: Tracked, out: Any) -> Tracked:
    shape, size = jnp.shape(out), math.prod(jnp.shape(out))
    smaller = jnp.minimum(magnitude(a.value), magnitude(b.value))
    exact = [t for t in (a, b) if t.error is None]
    for t in exact:
        smaller = magnitude(t.value)
    unit = jnp.where(smaller == 0, 0.0, U)  # nothing is rounded in x + 0
    below = jnp.where((smaller > 0) & (smaller < SMALL), TINY, 0.0)
    inherited = sum((t.error for t in (a, b) if t.error is not None), start=0.0)
    scale = scale_of(a, shape) + scale_of(b, shape)
    norm = norm_of(a, shape) + norm_of(b, shape) + 2 * U * scale + underflow(size)
    error = (inherited + (unit * magnitude(out) + below)) * UP
    largest = (most(a) + most(b) + 2 * U * scale + TINY) * UP
    return Tracked(out, jnp.broadcast_to(error, shape), norm * UP, scale * UP, largest)


def _add(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    (out,) = bind(eqn, *(p.value for p in parts))
    return [_sum(parts[0], parts[1], out)]


def _subtract_mean(eqn: Any, parts: list[Tracked], mean_error: Any) -> list[Tracked]:
    """The stored mean is off by ``mean_error``."""
    if mean_error is None:
        return _unknown(eqn, parts, None)
    return [minus(parts[0], Tracked(parts[1].value, mean_error))]


def _negative(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    (out,) = bind(eqn, parts[0].value)
    return [parts[0]._replace(value=out)]


def _product(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    a, b = parts if parts[0].error is not None else parts[::-1]
    (out,) = bind(eqn, *(p.value for p in parts))
    error = magnitude(b.value) * UP * error_of(a)
    if b.error is not None:
        error = error + b.error * (magnitude(a.value) + error_of(a))
    return [_scaled(out, a, b, error, magnitude(b.value))]


def _scaled(out: Any, a: Tracked, b: Tracked, error: Any, factor: Any) -> Tracked:
    """a times or over b, with the rounding of the operation still to add."""
    shape, size = jnp.shape(out), math.prod(jnp.shape(out))
    tiny = jnp.where(nonzero(b), TINY, 0.0)
    error = (error + 2 * U * magnitude(out)) * UP + jnp.where(nonzero(a), tiny, 0.0)
    if b.error is not None:
        return Tracked(out, error)
    factor = jnp.max(factor, initial=0.0)
    scale = factor * scale_of(a, shape) * UP + underflow(size)
    rounding = 2 * U * scale + underflow(size)
    norm = (factor * norm_of(a, shape) + rounding) * UP
    largest = (factor * most(a) + rounding) * UP
    return Tracked(out, error, norm, scale, largest)


def _quotient(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    a, b = parts
    (out,) = bind(eqn, a.value, b.value)
    factor = 1 / magnitude(b.value)
    error = factor * UP * error_of(a)
    if b.error is not None:
        error = jnp.where(b.error > 0, jnp.inf, error)
    return [_scaled(out, a, b, error, factor)]


def _power(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    """x^n, or 1 / x^n for n < 0 (of values with few pieces only)."""
    n, x = eqn.params.get("y", 2), parts[0]
    (out,) = bind(eqn, x.value)
    if n == 1:
        return [x._replace(value=out)]
    e = error_of(x)
    spread = jnp.where(e > 0, jnp.inf if n < 0 else 2 * (magnitude(x.value) + e) ** abs(n), 0.0)
    relative = gamma(abs(n) + 8, np.float64)
    return [
        Tracked(out, (spread + relative * magnitude(out)) * UP + jnp.where(nonzero(x), TINY, 0.0))
    ]


def _extremum(a: Tracked, b: Tracked, sign: int) -> Tracked:
    """max (sign 1) or min (sign -1): the error of the winner where it is certain."""
    pick = jnp.maximum if sign > 0 else jnp.minimum
    out = pick(a.value, b.value)
    shape = jnp.shape(out)
    gap = sign * (as_float(a.value) - as_float(b.value)) * (1 - 4 * U)
    one, other = error_of(a, shape), error_of(b, shape)
    doubt = one if b.error is None else other if a.error is None else (one + other) * UP
    either = one if b.error is None else other if a.error is None else jnp.maximum(one, other)
    error = jnp.where(gap > doubt, one, jnp.where(gap < -doubt, other, either))
    norm = norm_of(a, shape) + norm_of(b, shape)
    scale = (scale_of(a, shape) + scale_of(b, shape)) * UP
    norm = norm * UP if b.error is not None else norm
    return Tracked(out, error, norm, scale, jnp.maximum(most(a), most(b)))


def _best(sign: int) -> Rule:
    return lambda _, p, __: [_extremum(p[0], p[1], sign)]


def _clamp(_: Any, parts: list[Tracked], __: Any) -> list[Tracked]:
    low, x, high = parts
    return [_extremum(_extremum(x, low, 1), high, -1)]


def _compared(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    a, b = parts
    (out,) = bind(eqn, a.value, b.value)
    doubt = (error_of(a, out.shape) + error_of(b, out.shape)) * UP
    known = abs(as_float(a.value) - as_float(b.value)) * (1 - 4 * U) > doubt
    return [Tracked(out, jnp.where(known | (doubt == 0), 0.0, 1.0))]


def _sign(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    (out,) = bind(eqn, parts[0].value)
    e = error_of(parts[0])
    known = (magnitude(parts[0].value) > e) | (e == 0)
    return [Tracked(out, jnp.where(known, 0.0, 1 + magnitude(out)))]


def _logic(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    (out,) = bind(eqn, *(p.value for p in parts))
    doubt = sum((error_of(p, out.shape) for p in parts), start=0.0)
    return [Tracked(out, jnp.where(doubt > 0, 1.0 if out.dtype == bool else jnp.inf, 0.0))]


def _cast(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    (out,) = bind(eqn, parts[0].value)
    if out.dtype == bool:
        return [Tracked(out, jnp.where(error_of(parts[0]) > 0, 1.0, 0.0))]
    return [Tracked(out, error_of(parts[0]))]


def _select(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    """The chosen branch; where the choice is in doubt, whichever branch is further away."""
    predicate, *branches = parts
    if predicate.error is None:
        return _move(eqn, parts)
    if len(branches) != 2:
        return _unknown(eqn, parts, None)
    (out,) = bind(eqn, *(p.value for p in parts))
    shape, doubt = out.shape, predicate.error > 0
    values = [as_float(b.value) for b in branches]
    on_false, on_true = (error_of(b, shape) for b in branches)
    chosen = jnp.where(predicate.value, on_true, on_false)
    jump = abs(values[0] - values[1]) * UP
    error = jnp.where(doubt, (jnp.maximum(on_true, on_false) + jump) * UP, chosen)
    norm = jnp.hypot(*(jnp.asarray(norm_of(b, shape), float) for b in branches))
    jumps = norm2(jnp.where(doubt, jump, 0.0))
    scale = sum(scale_of(b, shape) for b in branches)
    return [Tracked(out, error, (norm + jumps) * UP, scale * UP)]


MOVES = (
    *("reshape", "transpose", "rev", "squeeze", "expand_dims", "broadcast_in_dim", "concatenate"),
    *("stack", "unstack", "tile", "pad", "slice", "split", "gather", "dynamic_slice"),
    *("dynamic_update_slice", "sharding_constraint"),
)
_SCATTERS = ("scatter", "scatter-add", "scatter-sub", "scatter-mul")
RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(_SCATTERS, _scatter),
    **dict.fromkeys(("dot_general", "conv_general_dilated"), _matrix),
    **dict.fromkeys(("add", "add_any", "sub"), _add),
    **dict.fromkeys(("neg", "abs"), _negative),
    **dict.fromkeys(("integer_pow", "square"), _power),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), _compared),
    **dict.fromkeys(("not", "and", "or", "xor"), _logic),
    "reduce_sum": _summed(_reduced),
    "cumsum": _summed(lambda eqn: eqn.invars[0].aval.shape[eqn.params["axis"]]),
    "reduce_window_sum": _summed(lambda eqn: math.prod(eqn.params["window_dimensions"])),
    "enter_batch": _identity,
    "subtract_batch_mean": _subtract_mean,
    "mul": _product,
    "div": _quotient,
    "max": _best(1),
    "min": _best(-1),
    "clamp": _clamp,
    "sign": _sign,
    "convert_element_type": _cast,
    "select_n": _select,
}


def tracked(eqn: Any, operands: list[Any], extra: Any, tight: bool = True) -> list[Tracked]:
    """One equation.

    Args:
      extra: what its rule needs to know about its constants.
      tight: look at all entries of the errors for their norms, which takes as long again.
    """
    operands = [o if isinstance(o, Tracked) else Tracked(o) for o in operands]
    if is_identity(eqn):
        return operands
    if all(o.error is None for o in operands):
        return [Tracked(v) for v in bind(eqn, *(o.value for o in operands))]
    found = RULES.get(eqn.primitive.name, _unknown)(eqn, operands, extra)
    return list(map(tightened, found)) if tight else found

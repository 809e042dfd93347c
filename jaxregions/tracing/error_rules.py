"""The table primitive -> error rule: how far a float64 result may be from the exact one.

Every rule is interval arithmetic around the computed value: inherited error and the rounding of
the operation itself, which is relative (``U``, ``gamma``): an exact zero stays an exact zero.
Numbers below the normal range round, or are read as zero, with an absolute error far below
``TINY``; it is added only where an operand is not exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.exact import gamma, unit_roundoff
from jaxregions.tracing.flatten import bind, is_float, is_identity

__all__ = [
    "FLOOR",
    "MOVES",
    "TINY",
    "LinearNorms",
    "Tracked",
    "U",
    "added",
    "minus",
    "norm2",
    "tracked",
]

U = unit_roundoff(np.float64)
# Above every absolute error of underflow, multiples of 2^-1022, and its square is a normal number:
# an error is either 0 or so large that a sum of squares shows it. Entries of a value below it that
# are not 0 have an error.
TINY = 2.0**-500
_SMALL = 2.0**-400  # if no term is below, a sum is zero or far above TINY
FLOOR = 2.0**-100
_UP = 1 + 16 * U  # covers the roundings of a bound's own formula


class Tracked(NamedTuple):
    """A value of the program and what is known of its error.

    error: bound on |value - exact| per entry, of the value's shape; None: exact. For predicates: 1
      where the exact one may differ.
    norm: bound on the Euclidean norm of value - exact; None: that of ``error``.
    scale: bound on the Euclidean norm of value; None: look at the value.
    """

    value: Any
    error: Any = None
    norm: Any = None
    scale: Any = None


class LinearNorms(NamedTuple):
    """Norms of the matrix W of x -> W x, rounded up; entries follow the shape of the output.

    row: sum_j |w_ij|; None where length times the Euclidean norm is as good.
    length: (sum_j w_ij^2)^(1/2), at least ``FLOOR`` for a row that is not zero.
    operator: the largest singular value, at most.
    frobenius: (sum_i length_i^2)^(1/2).
    terms: the most products that one output sums.
    """

    row: Any
    length: Any
    operator: Any
    frobenius: Any
    terms: Any


Rule = Callable[[Any, list[Tracked], Any], list[Tracked]]


# Parts of the rules -----------------------------------------------------------------------------


def _float(value: Any) -> Any:
    return value if is_float(value) else jnp.asarray(value, float)


def _abs(value: Any) -> Any:
    return abs(_float(value))


def _error(t: Tracked, shape: tuple[int, ...] | None = None) -> Any:
    shape = jnp.shape(t.value) if shape is None else shape
    return jnp.broadcast_to(0.0 if t.error is None else t.error, shape)


def norm2(value: Any, xp: Any = jnp) -> Any:
    """Euclidean norm, rounded up; 0 only if every entry is 0 (of values: or below ``TINY``)."""
    size = max(math.prod(jnp.shape(value)), 1)
    root = xp.sqrt(xp.sum(value * value))
    return root * (1 + gamma(size + 8, np.float64)) + xp.where(root > 0, _underflow(size), 0.0)


def _norm(t: Tracked, shape: tuple[int, ...]) -> Any:
    if t.error is None:
        return 0.0
    return t.norm if t.norm is not None else norm2(_error(t, shape))


def _scale(t: Tracked, shape: tuple[int, ...]) -> Any:
    own = norm2(_float(t.value)) if t.scale is None else t.scale
    repeats = math.prod(shape) / max(math.prod(jnp.shape(t.value)), 1)
    return own if repeats == 1 else own * (math.sqrt(repeats) * _UP)


def _nonzero(t: Tracked) -> Any:
    """Where the exact value may differ from zero."""
    return (_abs(t.value) > 0) if t.error is None else (_abs(t.value) + t.error > 0)


def _underflow(size: int) -> float:
    return math.sqrt(size) * TINY


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
    errors = bind(eqn, *(_error(p) if i in moved else p.value for i, p in enumerate(parts)))
    size = sum(math.prod(jnp.shape(parts[i].value)) for i in moved)
    if name == "gather" or sum(math.prod(v.shape) for v in values) > size:  # it may repeat entries
        return [Tracked(v, e) for v, e in zip(values, errors, strict=True)]
    norms = [_norm(parts[i], jnp.shape(parts[i].value)) for i in moved]
    if len(norms) == 1:
        scale = parts[moved[0]].scale
        return [Tracked(v, e, norms[0], scale) for v, e in zip(values, errors, strict=True)]
    total = sum(norms) * _UP
    return [
        Tracked(v, e, jnp.minimum(total, norm2(e))) for v, e in zip(values, errors, strict=True)
    ]


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
    if norms.row is None:
        largest = norm = norm2(x.error)
    else:
        largest = jnp.max(_error(x), initial=0.0)
        norm = math.sqrt(size) * _UP * largest
    norm = norm if x.norm is None else jnp.minimum(norm, x.norm)
    # length >= FLOOR, so this covers underflow of n products.
    live = jnp.where((height > 0) | (largest > 0), _SMALL, 0.0)
    # An exact zero is multiplied and added without rounding.
    used = jnp.sum(x.value != 0, dtype=jnp.int32).astype(float)
    terms = jnp.minimum(used, norms.terms)
    rounding = (terms + 1) * (U * (1 + gamma(64, np.float64))) / (1 - norms.terms * U)
    rounded = rounding * (height + live) + live
    # Partial sums are below length * height: no overflow goes unnoticed.
    rounded = jnp.where(norms.frobenius * height < 2.0**1000, rounded, jnp.inf)
    error = norms.length * ((norm + rounded) * _UP)
    if norms.row is not None:
        top = rounding * jnp.max(abs(x.value), initial=0.0)
        error = jnp.minimum(error, norms.row * (largest + top) + norms.length * live)
        error = jnp.where(rounded < jnp.inf, error, jnp.inf)
    return [
        Tracked(
            out,
            error,
            norms.operator * norm + norms.frobenius * rounded,
            (norms.operator + rounding * norms.frobenius) * (height + live) * _UP,
        )
    ]


def _summed(terms: Callable[[Any], int]) -> Rule:
    """Sums of entries."""

    def rule(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
        (x,) = parts
        relative = gamma(terms(eqn) + 8, np.float64)
        (out,), (sizes,), (errors,) = (bind(eqn, v) for v in (x.value, _abs(x.value), _error(x)))
        error = errors * (1 + relative) + relative * sizes
        return [Tracked(out, error * _UP + jnp.where(sizes + errors > 0, TINY, 0.0))]

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

    sizes = combined(_abs(x.value), _abs(update.value))
    changes = _abs(update.value) if name == "scatter-mul" else _error(update)
    errors = combined(_error(x), changes)
    live = _nonzero(x) if name == "scatter-mul" else sizes + errors > 0
    error = errors * (1 + relative) + relative * sizes
    return [Tracked(out, error * _UP + jnp.where(live, TINY, 0.0))]


# Elementwise ------------------------------------------------------------------------------------


def minus(a: Tracked, b: Tracked) -> Tracked:
    """a - b."""
    return _sum(a, b, _float(a.value) - _float(b.value))


def added(a: Tracked, b: Tracked) -> Tracked:
    """a + b."""
    return _sum(a, b, _float(a.value) + _float(b.value))


def _sum(a: Tracked, b: Tracked, out: Any) -> Tracked:
    shape, size = jnp.shape(out), math.prod(jnp.shape(out))
    smaller = jnp.minimum(_abs(a.value), _abs(b.value))
    exact = [t for t in (a, b) if t.error is None]
    for t in exact:
        smaller = _abs(t.value)
    unit = jnp.where(smaller == 0, 0.0, U)  # nothing is rounded in x + 0
    below = jnp.where((smaller > 0) & (smaller < _SMALL), TINY, 0.0)
    inherited = sum((t.error for t in (a, b) if t.error is not None), start=0.0)
    scale = _scale(a, shape) + _scale(b, shape)
    norm = _norm(a, shape) + _norm(b, shape) + 2 * U * scale + _underflow(size)
    error = (inherited + (unit * _abs(out) + below)) * _UP
    return Tracked(out, jnp.broadcast_to(error, shape), norm * _UP, scale * _UP)


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
    error = _abs(b.value) * _UP * _error(a)
    if b.error is not None:
        error = error + b.error * (_abs(a.value) + _error(a))
    return [_scaled(out, a, b, error, _abs(b.value))]


def _scaled(out: Any, a: Tracked, b: Tracked, error: Any, factor: Any) -> Tracked:
    """a times or over b, with the rounding of the operation still to add."""
    shape, size = jnp.shape(out), math.prod(jnp.shape(out))
    tiny = jnp.where(_nonzero(b), TINY, 0.0)
    error = (error + 2 * U * _abs(out)) * _UP + jnp.where(_nonzero(a), tiny, 0.0)
    if b.error is not None:
        return Tracked(out, error)
    most = jnp.max(factor, initial=0.0)
    scale = most * _scale(a, shape) * _UP + _underflow(size)
    norm = (most * _norm(a, shape) + 2 * U * scale + _underflow(size)) * _UP
    return Tracked(out, error, norm, scale)


def _quotient(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    a, b = parts
    (out,) = bind(eqn, a.value, b.value)
    factor = 1 / _abs(b.value)
    error = factor * _UP * _error(a)
    if b.error is not None:
        error = jnp.where(b.error > 0, jnp.inf, error)
    return [_scaled(out, a, b, error, factor)]


def _power(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    """x^n, or 1 / x^n for n < 0 (of values with few pieces only)."""
    n, x = eqn.params.get("y", 2), parts[0]
    (out,) = bind(eqn, x.value)
    if n == 1:
        return [x._replace(value=out)]
    e = _error(x)
    spread = jnp.where(e > 0, jnp.inf if n < 0 else 2 * (_abs(x.value) + e) ** abs(n), 0.0)
    relative = gamma(abs(n) + 8, np.float64)
    return [Tracked(out, (spread + relative * _abs(out)) * _UP + jnp.where(_nonzero(x), TINY, 0.0))]


def _extremum(a: Tracked, b: Tracked, sign: int) -> Tracked:
    """max (sign 1) or min (sign -1): the error of the winner where it is certain."""
    pick = jnp.maximum if sign > 0 else jnp.minimum
    out = pick(a.value, b.value)
    shape = jnp.shape(out)
    gap = sign * (_float(a.value) - _float(b.value)) * (1 - 4 * U)
    one, other = _error(a, shape), _error(b, shape)
    doubt = one if b.error is None else other if a.error is None else (one + other) * _UP
    either = one if b.error is None else other if a.error is None else jnp.maximum(one, other)
    error = jnp.where(gap > doubt, one, jnp.where(gap < -doubt, other, either))
    norm = _norm(a, shape) + _norm(b, shape)
    scale = (_scale(a, shape) + _scale(b, shape)) * _UP
    return Tracked(out, error, norm * _UP if b.error is not None else norm, scale)


def _best(sign: int) -> Rule:
    return lambda _, p, __: [_extremum(p[0], p[1], sign)]


def _clamp(_: Any, parts: list[Tracked], __: Any) -> list[Tracked]:
    low, x, high = parts
    return [_extremum(_extremum(x, low, 1), high, -1)]


def _compared(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    a, b = parts
    (out,) = bind(eqn, a.value, b.value)
    doubt = (_error(a, out.shape) + _error(b, out.shape)) * _UP
    known = abs(_float(a.value) - _float(b.value)) * (1 - 4 * U) > doubt
    return [Tracked(out, jnp.where(known | (doubt == 0), 0.0, 1.0))]


def _sign(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    (out,) = bind(eqn, parts[0].value)
    e = _error(parts[0])
    known = (_abs(parts[0].value) > e) | (e == 0)
    return [Tracked(out, jnp.where(known, 0.0, 1 + _abs(out)))]


def _logic(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    (out,) = bind(eqn, *(p.value for p in parts))
    doubt = sum((_error(p, out.shape) for p in parts), start=0.0)
    return [Tracked(out, jnp.where(doubt > 0, 1.0 if out.dtype == bool else jnp.inf, 0.0))]


def _cast(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    (out,) = bind(eqn, parts[0].value)
    if out.dtype == bool:
        return [Tracked(out, jnp.where(_error(parts[0]) > 0, 1.0, 0.0))]
    return [Tracked(out, _error(parts[0]))]


def _select(eqn: Any, parts: list[Tracked], _: Any) -> list[Tracked]:
    """The chosen branch; where the choice is in doubt, whichever branch is further away."""
    predicate, *branches = parts
    if predicate.error is None:
        return _move(eqn, parts)
    if len(branches) != 2:
        return _unknown(eqn, parts, None)
    (out,) = bind(eqn, *(p.value for p in parts))
    shape, doubt = out.shape, predicate.error > 0
    values = [_float(b.value) for b in branches]
    on_false, on_true = (_error(b, shape) for b in branches)
    chosen = jnp.where(predicate.value, on_true, on_false)
    jump = abs(values[0] - values[1]) * _UP
    error = jnp.where(doubt, (jnp.maximum(on_true, on_false) + jump) * _UP, chosen)
    norm = jnp.hypot(*(jnp.asarray(_norm(b, shape), float) for b in branches))
    jumps = norm2(jnp.where(doubt, jump, 0.0))
    scale = sum(_scale(b, shape) for b in branches)
    return [Tracked(out, error, (norm + jumps) * _UP, scale * _UP)]


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


def tracked(eqn: Any, operands: list[Any], extra: Any) -> list[Tracked]:
    """One equation; ``extra`` is what its rule needs to know about its constants."""
    operands = [o if isinstance(o, Tracked) else Tracked(o) for o in operands]
    if is_identity(eqn):
        return operands
    if all(o.error is None for o in operands):
        return [Tracked(v) for v in bind(eqn, *(o.value for o in operands))]
    return RULES.get(eqn.primitive.name, _unknown)(eqn, operands, extra)

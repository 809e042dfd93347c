"""The table primitive -> rule: what each primitive does to input-dependent values."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.tracing import tables
from jaxregions.tracing.flatten import JaxprEqn
from jaxregions.tracing.tables import Table, Unprovable
from jaxregions.tracing.walk import Slot, Walk

__all__ = ["AFFINE_TABLES", "RULES"]

Rule = Callable[[Walk, JaxprEqn, list[Any]], list[Any]]

BATCHNORM_HINT = (
    "; if this is BatchNorm in training mode, condition the model on a batch first: jr.condition"
)


def _slots(operands: list[Any]) -> list[Slot]:
    return [o for o in operands if isinstance(o, Slot)]


def _depth(operands: list[Any]) -> int:
    return max(s.depth for s in _slots(operands))


# Linear in all operands together -------------------------------------------------------------------


def _linear(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    operands = [walk.flush(o) for o in operands]
    return walk.emit(eqn, operands, _depth(operands))


def _linear_in_first(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """Gathers and slices: the indices are constants."""
    if any(isinstance(o, Slot) for o in operands[1:]):
        raise Unprovable("an index or update position that depends on the input")
    return _linear(walk, eqn, operands)


def _linear_in_updates(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """scatter and scatter-add (operand, indices, updates); dynamic_update_slice (operand, update, ...)."""
    dynamic = eqn.primitive.name == "dynamic_update_slice"
    positions = operands[2:] if dynamic else operands[1:2]
    if any(isinstance(o, Slot) for o in positions):
        raise Unprovable("an index or update position that depends on the input")
    return _linear(walk, eqn, operands)


def _bilinear(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    if len(_slots(operands)) > 1:
        raise Unprovable("a product of two input-dependent values")
    return _linear(walk, eqn, operands)


def _subtract_mean(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    if any(isinstance(o, Slot) for o in operands[1:]):
        raise Unprovable("a batch mean that depends on the input")
    return _linear(walk, eqn, operands)


# Elementwise ---------------------------------------------------------------------------------------


def _divided(_, parts):
    top, bottom = parts
    if any(not tables_zero(a) for a, _ in bottom.pieces):
        raise Unprovable("a division by an input-dependent value" + BATCHNORM_HINT)
    return tables.combine(
        top, bottom, lambda p, q: (tables.divide(p[0], q[1]), tables.divide(p[1], q[1]))
    )


def tables_zero(x: Any) -> bool:
    return isinstance(x, Fraction) and x == 0


def _product(_, parts):
    try:
        return tables.multiplied(*parts)
    except Unprovable as error:
        raise Unprovable(f"{error}{BATCHNORM_HINT}") from error


def _power(eqn, parts):
    (base,) = parts
    exponent = eqn.params.get("y", 2)
    if exponent == 1:
        return base
    if all(tables_zero(a) for a, _ in base.pieces) and exponent >= 0:
        return tables.map_pieces(base, lambda a, b: (a, b**exponent))
    raise Unprovable(f"a power of an input-dependent value{BATCHNORM_HINT}")


def _not(_, parts):
    return tables.map_pieces(parts[0], lambda a, b: (a, 1 - b))


def _logic(function):
    def rule(_, parts):
        return tables.combine(
            *parts, lambda p, q: (Fraction(0), Fraction(function(int(p[1]), int(q[1]))))
        )

    return rule


def _negative(table: Table) -> Table:
    return tables.scaled(table, Fraction(-1))


def _minus(left: Table, right: Table) -> Table:
    return tables.added(left, _negative(right))


def _sign(_, parts):
    above, below = tables.positive(parts[0]), tables.positive(_negative(parts[0]))
    return _minus(above, below)


def _minimum(left: Table, right: Table) -> Table:
    return _negative(tables.maximum(_negative(left), _negative(right)))


def _select(_, parts):
    if len(parts) != 3:
        raise Unprovable(f"a selection among {len(parts) - 1} cases")
    predicate, on_false, on_true = parts
    return tables.selected(predicate, on_true, on_false)


def _unequal(_, parts):
    """!= is 1 almost everywhere unless both sides agree on a whole piece."""
    return tables.map_pieces(
        _minus(*parts), lambda a, b: (Fraction(0), Fraction(int(not (tables_zero(a) and b == 0))))
    )


AFFINE_TABLES: dict[str, Callable[[JaxprEqn, list[Table]], Table]] = {
    "add": lambda _, p: tables.added(*p),
    "add_any": lambda _, p: tables.added(*p),
    "sub": lambda _, p: _minus(*p),
    "neg": lambda _, p: _negative(p[0]),
    "mul": _product,
    "div": _divided,
    "convert_element_type": lambda _, p: p[0],
    "copy": lambda _, p: p[0],
    "copy_p": lambda _, p: p[0],
    "reduce_precision": lambda _, p: p[0],
    "optimization_barrier": lambda _, p: p[0],
    "integer_pow": _power,
    "square": _power,
}
BENDING_TABLES: dict[str, Callable[[JaxprEqn, list[Table]], Table]] = {
    "max": lambda _, p: tables.maximum(*p),
    "min": lambda _, p: _minimum(*p),
    "abs": lambda _, p: tables.maximum(p[0], _negative(p[0])),
    "sign": _sign,
    "clamp": lambda _, p: _minimum(tables.maximum(p[1], p[0]), p[2]),
    "gt": lambda _, p: tables.positive(_minus(*p)),
    "ge": lambda _, p: tables.positive(_minus(*p)),
    "lt": lambda _, p: tables.positive(_minus(p[1], p[0])),
    "le": lambda _, p: tables.positive(_minus(p[1], p[0])),
    "ne": _unequal,
    "eq": lambda e, p: _not(e, [_unequal(e, p)]),
    "not": _not,
    "and": _logic(lambda a, b: a & b),
    "or": _logic(lambda a, b: a | b),
    "xor": _logic(lambda a, b: a ^ b),
    "select_n": _select,
}
_SUMS = {"add", "add_any", "sub"}
_COMPARISONS = {"gt", "ge", "lt", "le"}


def _elementwise(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    name, slots = eqn.primitive.name, _slots(operands)
    if name == "convert_element_type":
        _check_cast(walk, eqn, slots[0])
    if name == "select_n" and not isinstance(operands[0], Slot):
        return _linear(walk, eqn, operands)  # a constant mask: linear in the cases
    affine = name in AFFINE_TABLES
    if affine and not any(s.bent for s in slots):
        if (
            len(slots) == 1
            and not (name == "div" and slots[0] is operands[1])
            and name not in _POWERS
        ):
            (out,) = walk.emit(eqn, operands, slots[0].depth)
            out.parent = (slots[0], eqn, operands)
            return [out]
        if name in _SUMS:
            return walk.emit(eqn, operands, _depth(operands))
    origin = walk.common_origin(slots)
    if origin is None:
        return _different_origins(walk, eqn, operands)
    rule = AFFINE_TABLES.get(name) or BENDING_TABLES[name]
    try:
        table = rule(eqn, [walk.table_of(o, origin) for o in operands])
    except Unprovable:
        if not affine or name in _POWERS or (len(slots) > 1 and name not in _SUMS):
            raise
        return _linear(walk, eqn, operands)
    (out,) = walk.emit(eqn, operands, origin.depth)
    out.origin, out.table = origin, table
    return [out]


_POWERS = {"integer_pow", "square"}


def _different_origins(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """Elementwise operations on values that are no functions of one common value."""
    name = eqn.primitive.name
    if name in _SUMS:
        return _linear(walk, eqn, operands)
    if name in ("max", "min"):
        return [_contest(walk, [walk.flush(o) for o in operands], name == "min")]
    if name in _COMPARISONS:
        (out,) = walk.emit(eqn, operands, _depth(operands))
        out.table = Table((), ((Fraction(0), _Undecided(name, operands)),))
        return [out]
    if name == "select_n" and isinstance(operands[0], Slot) and operands[0].bent:
        marker = operands[0].table.pieces[0][1]
        if isinstance(marker, _Undecided) and len(operands) == 3:
            a, b = marker.operands
            greater = marker.name in ("gt", "ge")
            if operands[1] is b and operands[2] is a:
                return [_contest(walk, [walk.flush(a), walk.flush(b)], not greater)]
            if operands[1] is a and operands[2] is b:
                return [_contest(walk, [walk.flush(a), walk.flush(b)], greater)]
        raise Unprovable("its branches do not provably agree where the predicate changes")
    if name in ("mul", "div"):
        raise Unprovable(f"a product of two input-dependent values{BATCHNORM_HINT}")
    raise Unprovable("a comparison of values that do not come elementwise from one value")


class _Undecided:
    """A comparison of two unrelated values: good for selecting between just these two."""

    def __init__(self, name: str, operands: list[Any]):
        self.name, self.operands = name, operands


def _check_cast(walk: Walk, eqn: JaxprEqn, slot: Slot) -> None:
    old, new = np.dtype(slot.dtype), np.dtype(eqn.params["new_dtype"])
    inexact = jnp.issubdtype(new, jnp.floating)
    if jnp.issubdtype(old, jnp.floating):
        if not inexact:
            raise Unprovable(f"a cast of an input-dependent value from {old} to {new}")
        walk.casts += old != new


# Contests: which of several candidates is largest ---------------------------------------------------


def _contest(walk: Walk, candidates: list[Any], smallest: bool) -> Slot:
    """max (or min) of two unrelated values: one comparison."""
    depth = _depth(candidates)
    shape = np.broadcast_shapes(
        *(np.shape(c) if not isinstance(c, Slot) else c.shape for c in candidates)
    )

    def lifted(*v):
        return jnp.stack([jnp.broadcast_to(p, shape) for p in v])

    stacked = walk.compute(lifted, candidates, depth, "stack")
    return _tournament(walk, stacked, None, smallest)


def _tournament(walk: Walk, stacked: Slot, valid: np.ndarray | None, smallest: bool) -> Slot:
    """Winner over the first axis by rounds of pairwise comparisons, one stage a round.

    ``valid`` marks real candidates: padding never competes.
    """
    contest, walk.contests = walk.contests, walk.contests + 1
    best = jnp.minimum if smallest else jnp.maximum
    while stacked.shape[0] > 1:
        half = stacked.shape[0] // 2
        rows = None if valid is None else valid[:half] & valid[half : 2 * half]
        left = walk.compute(lambda v, h=half: v[:h], [stacked], stacked.depth, "candidates")
        right = walk.compute(lambda v, h=half: v[h : 2 * h], [stacked], stacked.depth, "candidates")
        walk.units += 1
        walk.switch(stacked.depth, left, right, unit=walk.units - 1, rows=rows, contest=contest)

        def play(v, h=half):
            return jnp.concatenate([best(v[:h], v[h : 2 * h]), v[2 * h :]])

        if valid is not None:
            valid = np.concatenate([valid[:half] | valid[half : 2 * half], valid[2 * half :]])
        stacked = walk.compute(play, [stacked], stacked.depth + 1, "round")
    return walk.compute(lambda v: v[0], [stacked], stacked.depth, "winner")


def _reduce_extremum(walk: Walk, eqn: JaxprEqn, operands: list[Any], smallest: bool) -> list[Any]:
    (value,) = (walk.flush(o) for o in operands)
    axes = tuple(eqn.params["axes"])
    kept = [a for a in range(value.ndim) if a not in axes]

    def to_front(v):
        return jnp.transpose(v, (*axes, *kept)).reshape(-1, *(v.shape[a] for a in kept))

    stacked = walk.compute(to_front, [value], value.depth, "candidates")
    return [_tournament(walk, stacked, None, smallest)]


def _window_extremum(walk: Walk, eqn: JaxprEqn, operands: list[Any], smallest: bool) -> list[Any]:
    (value,) = (walk.flush(o) for o in operands)
    patches = partial(_patches, params=eqn.params)
    with jax.ensure_compile_time_eval():
        valid = np.asarray(patches(jnp.ones(value.shape, bool), fill=False))
    worst = np.inf if smallest else -np.inf
    stacked = walk.compute(partial(patches, fill=worst), [value], value.depth, "patches")
    return [_tournament(walk, stacked, None if valid.all() else valid, smallest)]


def _patches(v: Any, *, params: dict[str, Any], fill: Any) -> Any:
    """(window positions, *output shape): the entries of every pooling window, padding filled in."""
    padding = [
        (lo, hi, base - 1)
        for (lo, hi), base in zip(params["padding"], params["base_dilation"], strict=True)
    ]
    v = jax.lax.pad(v, jnp.asarray(fill, v.dtype), padding)
    window, dilation, strides = (
        params[k] for k in ("window_dimensions", "window_dilation", "window_strides")
    )
    out = [
        (n - (w - 1) * d - 1) // s + 1
        for n, w, d, s in zip(v.shape, window, dilation, strides, strict=True)
    ]
    parts = []
    for offset in np.ndindex(*window):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, out, strides, strict=True)]
        parts.append(jax.lax.slice(v, start, stop, strides))
    return jnp.stack(parts)


def _sorted(walk: Walk, value: Slot, axis: int) -> Slot:
    """Ascending along an axis by odd-even transposition: comparisons of neighbours, one stage a round."""
    line = walk.compute(lambda v: jnp.moveaxis(v, axis, 0), [value], value.depth, "candidates")
    n = line.shape[0]
    contest, walk.contests = walk.contests, walk.contests + 1
    for turn in range(n):
        low = np.arange(turn % 2, n - 1, 2)
        if not len(low):
            continue
        left = walk.compute(lambda v, i=low: v[i], [line], line.depth, "candidates")
        right = walk.compute(lambda v, i=low: v[i + 1], [line], line.depth, "candidates")
        walk.units += 1
        walk.switch(line.depth, left, right, unit=walk.units - 1, contest=contest)

        def exchange(v, i=low):
            a, b = v[i], v[i + 1]
            return v.at[i].set(jnp.minimum(a, b)).at[i + 1].set(jnp.maximum(a, b))

        line = walk.compute(exchange, [line], line.depth + 1, "round")
    return walk.compute(lambda v: jnp.moveaxis(v, 0, axis), [line], line.depth, "sorted")


def _sort(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    if len(operands) != 1:
        raise Unprovable("a sort that carries other values along")
    return [_sorted(walk, walk.flush(operands[0]), eqn.params["dimension"])]


def _top_k(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    value = walk.flush(operands[0])
    axis, k = eqn.params.get("axis", value.ndim - 1) % value.ndim, eqn.params["k"]
    ordered = _sorted(walk, value, axis)

    def largest(v):
        return jnp.flip(jax.lax.slice_in_dim(v, v.shape[axis] - k, v.shape[axis], axis=axis), axis)

    return [
        walk.compute(largest, [ordered], ordered.depth, "top_k"),
        _position(walk, eqn, 1, ordered),
    ]


def _argument(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    return [_position(walk, eqn, 0, walk.flush(operands[0]))]


def _position(walk: Walk, eqn: JaxprEqn, which: int, value: Slot) -> Slot:
    """An index that depends on the input: a value nothing continuous can be made of, so unusable."""
    aval = eqn.outvars[which].aval
    out = walk.slot(aval.shape, aval.dtype, value.depth)
    out.table = Table((Fraction(0),), ((Fraction(0), Fraction(0)), (Fraction(0), Fraction(1))))
    return out


LINEAR = ["reshape", "transpose", "rev", "squeeze", "expand_dims", "broadcast_in_dim", "concatenate", "pad", "slice", "reduce_sum", "cumsum", "reduce_window_sum", "split", "real", "enter_batch", "psum", "sharding_constraint"]
RULES: dict[str, Rule] = {
    **dict.fromkeys(LINEAR, _linear),
    **dict.fromkeys(("gather", "dynamic_slice"), _linear_in_first),
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter_add", "dynamic_update_slice"), _linear_in_updates
    ),
    **dict.fromkeys(("dot_general", "conv_general_dilated"), _bilinear),
    **dict.fromkeys((*AFFINE_TABLES, *BENDING_TABLES), _elementwise),
    "subtract_batch_mean": _subtract_mean,
    "reduce_max": partial(_reduce_extremum, smallest=False),
    "reduce_min": partial(_reduce_extremum, smallest=True),
    "reduce_window_max": partial(_window_extremum, smallest=False),
    "reduce_window_min": partial(_window_extremum, smallest=True),
    "sort": _sort,
    "top_k": _top_k,
    "argmax": _argument,
    "argmin": _argument,
}

"""The table primitive -> rule of exact evaluation: every primitive that a traced program may hold.

A rule gets ``Quotients`` for what depends on the input and arrays for constants. Primitives that
only move entries need no rule of their own: run on the entries' numbers, they say where each entry
of the result comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.tracing.flatten import JaxprEqn, bind, traced_as
from jaxregions.tracing.quotients import (
    Quotients,
    added,
    aligned,
    common,
    divided,
    multiplied,
    negative,
    product,
    quotients,
)

__all__ = ["RULES", "answer", "as_quotients", "minus"]

# What is costly to find and always the same: (key, what must stay alive for it) -> found.
Cache = dict[Any, tuple[Any, Any]]
Rule = Callable[[JaxprEqn, list[Any], Cache], list[Quotients]]


def answer(eqn: JaxprEqn, operands: list[Any], cache: Cache) -> list[Quotients]:
    """The equation's outputs.

    Raises:
      ValueError: a primitive without a rule, or one that has no exact value here; names it.
    """
    name = eqn.primitive.name
    if name not in RULES:
        raise ValueError(f"primitive '{name}': expected one that can be evaluated exactly")
    try:
        return RULES[name](eqn, operands, cache)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"primitive '{name}': {error}") from error


def as_quotients(value: Any, cache: Cache) -> Quotients:
    """A constant as one row, converted once."""
    if isinstance(value, Quotients):
        return value
    key = ("constant", id(value))
    if key not in cache:
        cache[key] = quotients(np.asarray(value)[None]), value
    return cache[key][0]


def minus(a: Quotients, b: Quotients) -> Quotients:
    return added(a, negative(b))


# Entry by entry ----------------------------------------------------------------------------------


def _elementwise(function: Callable[..., Quotients]) -> Rule:
    def rule(eqn, operands, cache):
        ndim = len(traced_as(eqn.outvars[0])[0])
        return [function(eqn, *(aligned(as_quotients(o, cache), ndim) for o in operands))]

    return rule


def _whole(values: Any) -> Quotients:
    """Truth values and signs as numbers."""
    return Quotients(np.asarray(values).astype(int).astype(object), 1)


def _sign(top: np.ndarray) -> np.ndarray:
    return np.greater(top, 0).astype(int) - np.less(top, 0).astype(int)


def _compared(test: np.ufunc) -> Rule:
    return _elementwise(lambda _, a, b: _whole(test(*common((a, b))[0])))


def _best(choose: np.ufunc) -> Rule:
    def function(_, a, b):
        (p, q), bottom = common((a, b))
        return Quotients(choose(p, q), bottom)

    return _elementwise(function)


def _clamp(_, low, value, high):
    (low, value, high), bottom = common((low, value, high))
    return Quotients(np.minimum(np.maximum(value, low), high), bottom)


def _select(_, which, *cases):
    tops, bottom = common(cases)
    shape = np.broadcast_shapes(which.top.shape, *(t.shape for t in tops))
    chosen = np.array(np.broadcast_to(tops[0], shape), object)
    for i, top in enumerate(tops[1:], 1):
        chosen = np.where(np.equal(which.top, i), top, chosen)
    return Quotients(chosen, bottom)


def _power(eqn, base):
    exponent = eqn.params.get("y", 2)
    if exponent < 0:
        raise ValueError(f"expected an exponent >= 0, received {exponent}")
    return Quotients(base.top**exponent, base.bottom**exponent)


def _quotient(eqn, a, b):
    _require(np.issubdtype(traced_as(eqn.outvars[0])[1], np.floating), "floating-point numbers")
    return divided(a, b)


def _not(eqn, a):
    _require(_is_bool(eqn), "truth values")
    return Quotients(1 - a.top, 1)


def _cast(eqn, a):
    return _whole(np.not_equal(a.top, 0)) if _is_bool(eqn) else a


def _is_bool(eqn):
    return np.dtype(traced_as(eqn.outvars[0])[1]).kind == "b"


def _require(condition: Any, what: str) -> None:
    if not condition:
        raise ValueError(f"expected {what}")


def _logic(function: np.ufunc) -> Rule:
    return _elementwise(lambda _, a, b: Quotients(function(a.top, b.top), 1))


# Moved entries -----------------------------------------------------------------------------------


def _move(indices: slice = slice(0, 0)) -> Rule:
    """Entries moved about; the operands at ``indices`` are constants that say where to."""

    def rule(eqn, operands, cache):
        places = range(len(operands))[indices]
        moved = [as_quotients(o, cache) for i, o in enumerate(operands) if i not in places]

        def find():
            numbers = iter(_numbers([m.shape for m in moved]))
            given = [o if i in places else next(numbers) for i, o in enumerate(operands)]
            return [np.asarray(s) for s in bind(eqn, *given)]

        tops, bottom = common(moved)
        flat = _flat(tops)
        sources = _remembered(cache, "sources", eqn, operands[indices], find)
        return [Quotients(flat[:, s], bottom) for s in sources]

    return rule


def _gather(eqn, operands, cache):
    """As a move; what is read out of bounds is one entry more."""
    value, fill = as_quotients(operands[0], cache), eqn.params.get("fill_value")
    size, unreadable = math.prod(value.shape), fill is None or np.isnan(fill)

    def find():
        filled = eqn.replace(params={**eqn.params, "fill_value": size})
        return np.asarray(bind(filled, *_numbers([value.shape]), operands[1])[0])

    source = _remembered(cache, "sources", eqn, operands[1:], find)
    _require(not unreadable or (source < size).all(), "indices in bounds, an entry reads NaN")
    tops, bottom = common([value, quotients(np.asarray([[0 if unreadable else fill]]))])
    return [Quotients(_flat(tops)[:, source], bottom)]


def _remembered(cache: Cache, kind: str, eqn: JaxprEqn, indices: list[Any], find: Callable) -> Any:
    key = (kind, id(eqn), *(np.asarray(o).tobytes() for o in indices))
    if key not in cache:
        cache[key] = find(), eqn  # alive, so that its id stays its own
    return cache[key][0]


def _numbers(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The numbers of the entries of these arrays, all in line."""
    starts = np.cumsum([0, *map(math.prod, shapes)])
    return [np.arange(a, b).reshape(s) for a, b, s in zip(starts, starts[1:], shapes, strict=False)]


def _flat(tops: list[np.ndarray]) -> np.ndarray:
    """(rows, entries of all arrays in line)."""
    rows = max(len(t) for t in tops)
    parts = [np.broadcast_to(t, (rows, *t.shape[1:])).reshape(rows, -1) for t in tops]
    return np.concatenate(parts, axis=1)


# Sums --------------------------------------------------------------------------------------------


def _reduce_sum(eqn, operands, cache):
    value = as_quotients(operands[0], cache)
    axes = tuple(a + 1 for a in eqn.params["axes"])
    return [Quotients(value.top.sum(axis=axes), value.bottom)]


def _cumsum(eqn, operands, cache):
    value, axis = as_quotients(operands[0], cache), eqn.params["axis"] + 1
    top = np.flip(value.top, axis) if eqn.params["reverse"] else value.top
    total = np.cumsum(top, axis=axis)
    return [Quotients(np.flip(total, axis) if eqn.params["reverse"] else total, value.bottom)]


def _window_sum(eqn, operands, cache):
    value = as_quotients(operands[0], cache)
    return [Quotients(_patches_of(value, eqn, eqn.params, cache).sum(axis=1), value.bottom)]


def _patches_of(value: Quotients, eqn: JaxprEqn, params: dict[str, Any], cache: Cache):
    """(rows, window positions, *output shape): entries of every window, padding zero."""
    sources = _remembered(cache, "patches", eqn, [], lambda: _windows(value.shape, params))
    zero = np.zeros((1, 1), int).astype(object)
    return _flat([zero, value.top])[:, sources]


def _windows(shape: tuple[int, ...], params: dict[str, Any]) -> np.ndarray:
    """(window positions, *output shape): the entry there, counted from 1; 0 is padding."""
    ndim, window = len(shape), params["window_dimensions"]
    number, inside, out = np.zeros((), int), np.ones((), bool), []
    for axis in range(ndim):
        low, high = params["padding"][axis]
        base, spread = params["base_dilation"][axis], params["window_dilation"][axis]
        stride, size = params["window_strides"][axis], shape[axis]
        reach = max((size - 1) * base + 1, 0) + low + high
        count = max((reach - (window[axis] - 1) * spread - 1) // stride + 1, 0)
        place = np.arange(window[axis])[:, None] * spread + np.arange(count) * stride - low
        held = (place % base == 0) & (place >= 0) & (place < size * base)
        form = [1] * (2 * ndim)
        form[axis], form[ndim + axis] = window[axis], count
        number = number * size + (place // base).reshape(form)
        inside = inside & held.reshape(form)
        out.append(count)
    return np.where(inside, number + 1, 0).reshape(math.prod(window), *out)


# Products ----------------------------------------------------------------------------------------


def _dot(eqn, operands, cache):
    """(rows, batch, left free, contracted) times (rows, batch, contracted, right free)."""
    a, b = (as_quotients(o, cache) for o in operands)
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    p = _grouped(a.top, left_batch, _free(a.top, left, left_batch), left)
    q = _grouped(b.top, right_batch, right, _free(b.top, right, right_batch))
    return [_shaped(product(p, q), eqn, a.bottom * b.bottom)]


def _free(top, *taken):
    return [i for i in range(top.ndim - 1) if not any(i in t for t in taken)]


def _grouped(top, *groups):
    """The axes of a row gathered into one axis a group."""
    order = [i + 1 for g in groups for i in g]
    sizes = [math.prod(top.shape[i + 1] for i in g) for g in groups]
    return top.transpose(0, *order).reshape(len(top), *sizes)


def _shaped(top, eqn, bottom) -> Quotients:
    return Quotients(top.reshape(len(top), *traced_as(eqn.outvars[0])[0]), bottom)


def _convolution(eqn, operands, cache):
    """Windows times kernels: (rows, groups, places, inputs) times (rows, groups, inputs, outputs).

    Groups of examples (as in a convolution's gradient) are groups of channels side by side.
    """
    image, kernel = (as_quotients(o, cache) for o in operands)
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    image_top = image.top.transpose(0, *(i + 1 for i in numbers.lhs_spec))
    kernel_top = kernel.top.transpose(0, *(i + 1 for i in numbers.rhs_spec))
    rows, count, channels, *size = image_top.shape
    parts = params["batch_group_count"]
    image_top = image_top.reshape(rows, parts, count // parts, channels, *size)
    image_top = image_top.swapaxes(1, 2).reshape(rows, count // parts, parts * channels, *size)
    outputs, inputs, *window = kernel_top.shape[1:]
    groups = parts * params["feature_group_count"]
    windows = _patches_of(
        Quotients(image_top, 1),
        eqn,
        {
            "window_dimensions": (1, 1, *window),
            "window_strides": (1, 1, *params["window_strides"]),
            "padding": ((0, 0), (0, 0), *params["padding"]),
            "base_dilation": (1, 1, *params["lhs_dilation"]),
            "window_dilation": (1, 1, *params["rhs_dilation"]),
        },
        cache,
    )  # (rows, window, examples, channels, *places)
    out = windows.shape[4:]
    left = windows.reshape(rows, math.prod(window), count // parts, groups, inputs, math.prod(out))
    left = left.transpose(0, 3, 2, 5, 4, 1)
    left = left.reshape(rows, groups, count // parts * math.prod(out), inputs * math.prod(window))
    right = kernel_top.reshape(len(kernel_top), groups, outputs // groups, -1).swapaxes(2, 3)
    top = product(left, right)
    top = top.reshape(len(top), groups, count // parts, math.prod(out), outputs // groups)
    top = top.transpose(0, 2, 1, 4, 3).reshape(len(top), count // parts, outputs, *out)
    back = np.argsort(numbers.out_spec)
    top = top.transpose(0, *(int(i) + 1 for i in back))
    return [_shaped(top, eqn, image.bottom * kernel.bottom)]


def _scatter(update: np.ufunc) -> Rule:
    """Updates added to, or subtracted from, the entries that they go to."""

    def rule(eqn, operands, cache):
        base, updates = (as_quotients(operands[i], cache) for i in (0, 2))
        places = _destinations(eqn, base.shape, operands[1], updates.shape, cache)
        kept = places > 0
        tops, bottom = common((base, updates))
        rows = max(map(len, tops))
        out, new = (_flat([np.broadcast_to(t, (rows, *t.shape[1:]))]).copy() for t in tops)
        update.at(out.T, places[kept] - 1, new.T[kept])
        return [_shaped(out, eqn, bottom)]

    return rule


def _scatter_mul(eqn, operands, cache):
    """Constant factors multiplied into the entries that they go to."""
    base = as_quotients(operands[0], cache)
    updates = np.asarray(operands[2])
    factors = np.full(math.prod(base.shape), Fraction(1), object)
    places = _destinations(eqn, base.shape, operands[1], updates.shape, cache)
    for place, factor in zip(places.tolist(), updates.ravel().tolist(), strict=True):
        if place:
            factors[place - 1] *= Fraction(factor)
    return [multiplied(base, quotients(factors.reshape(1, *base.shape)))]


def _destinations(eqn, shape, indices, updates_shape, cache) -> np.ndarray:
    """The entry, counted from 1, that each entry of the updates goes to; 0: it is dropped.

    Found by the transpose of a scatter, which reads there.
    """
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    options = {k: eqn.params[k] for k in names}

    def place(updates):
        return jax.lax.scatter_add(jnp.zeros(shape), indices, updates, **options)

    def find():
        read = jax.linear_transpose(place, jax.ShapeDtypeStruct(updates_shape, jnp.float64))
        numbers = 1.0 + _numbers([shape])[0]
        return np.asarray(read(jnp.asarray(numbers))[0]).astype(int).ravel()

    return _remembered(cache, "destinations", eqn, [indices], find)


def _same(_, operands, cache):
    return [as_quotients(operands[0], cache)]


RULES: dict[str, Rule] = {
    "add": _elementwise(lambda _, a, b: added(a, b)),
    "add_any": _elementwise(lambda _, a, b: added(a, b)),
    "sub": _elementwise(lambda _, a, b: minus(a, b)),
    "neg": _elementwise(lambda _, a: negative(a)),
    "mul": _elementwise(lambda _, a, b: multiplied(a, b)),
    "div": _elementwise(_quotient),
    "integer_pow": _elementwise(_power),
    "square": _elementwise(_power),
    "convert_element_type": _elementwise(_cast),
    "max": _best(np.maximum),
    "min": _best(np.minimum),
    "clamp": _elementwise(_clamp),
    "abs": _elementwise(lambda _, a: Quotients(abs(a.top), a.bottom)),
    "sign": _elementwise(lambda _, a: _whole(_sign(a.top))),
    "gt": _compared(np.greater),
    "ge": _compared(np.greater_equal),
    "lt": _compared(np.less),
    "le": _compared(np.less_equal),
    "eq": _compared(np.equal),
    "ne": _compared(np.not_equal),
    "not": _elementwise(_not),
    "and": _logic(np.bitwise_and),
    "or": _logic(np.bitwise_or),
    "xor": _logic(np.bitwise_xor),
    "select_n": _elementwise(_select),
    **dict.fromkeys(
        (
            "reshape",
            "transpose",
            "rev",
            "squeeze",
            "expand_dims",
            "broadcast_in_dim",
            "concatenate",
            "stack",
            "unstack",
            "tile",
            "pad",
            "slice",
            "split",
        ),
        _move(),
    ),
    "gather": _gather,
    "dynamic_slice": _move(slice(1, None)),
    "dynamic_update_slice": _move(slice(2, None)),
    "scatter": _move(slice(1, 2)),
    "scatter-add": _scatter(np.add),
    "scatter-sub": _scatter(np.subtract),
    "scatter-mul": _scatter_mul,
    "reduce_sum": _reduce_sum,
    "cumsum": _cumsum,
    "reduce_window_sum": _window_sum,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "enter_batch": _same,
    "sharding_constraint": _same,
}

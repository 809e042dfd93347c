"""Which of several candidates is largest: maxima, pooling and sorting as pairwise comparisons."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.tracing.flatten import JaxprEqn, traced_as
from jaxregions.tracing.tables import Unprovable
from jaxregions.tracing.walk import Contest, Slot, Walk, is_slot

__all__ = ["arg_extremum", "pair", "reduce_extremum", "sort", "top_k", "window_extremum"]


def pair(walk: Walk, candidates: list[Any], *, smallest: bool) -> Slot:
    """max (or min) of two values of one shape: one comparison."""
    left, right = candidates if is_slot(candidates[0]) else candidates[::-1]
    depth = max(c.depth for c in candidates if is_slot(c))
    return _played(walk, depth, left, right, [left, right], _best(smallest), None)


def _best(smallest: bool) -> Callable[..., Any]:
    return jnp.minimum if smallest else jnp.maximum


def _played(walk, depth, left, right, operands, function, contest) -> Slot:
    """function(*operands), affine once the signs of left - right are known too."""
    live = walk.switch(depth, left, right, unit=walk.new_unit(), contest=contest)
    return walk.compute(function, operands, depth + live, "round")


def _tournament(walk: Walk, line: Slot, smallest: bool) -> Slot:
    """Winner over the first axis by rounds of pairwise comparisons, one stage a round."""
    contest, best = Contest(walk.contests, smallest), _best(smallest)
    walk.contests += 1
    while line.shape[0] > 1:
        half = line.shape[0] // 2
        left = walk.compute(lambda v, h=half: v[:h], [line], line.depth, "candidates")
        right = walk.compute(lambda v, h=half: v[h : 2 * h], [line], line.depth, "candidates")

        def play(v, h=half):
            return jnp.concatenate([best(v[:h], v[h : 2 * h]), v[2 * h :]])

        line = _played(walk, line.depth, left, right, [line], play, contest)
    return walk.compute(lambda v: v[0], [line], line.depth, "winner")


def reduce_extremum(
    walk: Walk, eqn: JaxprEqn, operands: list[Any], _: str, *, smallest: bool
) -> list[Any]:
    value, axes = walk.flush(operands[0]), tuple(eqn.params["axes"])
    kept = [a for a in range(value.ndim) if a not in axes]

    def to_front(v):
        return jnp.transpose(v, (*axes, *kept)).reshape(-1, *(v.shape[a] for a in kept))

    return [_tournament(walk, walk.compute(to_front, [value], value.depth, "candidates"), smallest)]


def window_extremum(
    walk: Walk, eqn: JaxprEqn, operands: list[Any], _: str, *, smallest: bool
) -> list[Any]:
    value = walk.flush(operands[0])
    # Padding is an infinite constant, which never becomes a switching value.
    patches = partial(_patches, params=eqn.params, fill=np.inf if smallest else -np.inf)
    return [_tournament(walk, walk.compute(patches, [value], value.depth, "fill"), smallest)]


def _patches(v: Any, *, params: dict[str, Any], fill: float) -> Any:
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
    """Ascending along an axis by odd-even transposition: neighbours compared, one stage a round."""
    line = walk.compute(lambda v: jnp.moveaxis(v, axis, 0), [value], value.depth, "candidates")
    n = line.shape[0]
    for turn in range(n if n > 1 else 0):
        first = turn % 2
        last = first + (n - first) // 2 * 2
        if last == first:
            continue

        def low(v, i=first, j=last):
            return v[i:j:2]

        def high(v, i=first, j=last):
            return v[i + 1 : j : 2]

        def exchange(v, i=first, j=last, low=low, high=high):
            a, b = low(v), high(v)
            ordered = jnp.stack([jnp.minimum(a, b), jnp.maximum(a, b)], axis=1)
            return jnp.concatenate([v[:i], ordered.reshape(-1, *v.shape[1:]), v[j:]])

        left = walk.compute(low, [line], line.depth, "candidates")
        right = walk.compute(high, [line], line.depth, "candidates")
        line = _played(walk, line.depth, left, right, [line], exchange, None)
    return walk.compute(lambda v: jnp.moveaxis(v, 0, axis), [line], line.depth, "sorted")


def sort(walk: Walk, eqn: JaxprEqn, operands: list[Any], _: str) -> list[Any]:
    if len(operands) != 1:
        raise Unprovable("a sort that carries other values along")
    return [_sorted(walk, walk.flush(operands[0]), eqn.params["dimension"])]


def top_k(walk: Walk, eqn: JaxprEqn, operands: list[Any], where: str) -> list[Any]:
    value = walk.flush(operands[0])
    axis, k = eqn.params.get("axis", value.ndim - 1) % value.ndim, eqn.params["k"]
    ordered = _sorted(walk, value, axis)

    def largest(v):
        return jnp.flip(jax.lax.slice_in_dim(v, v.shape[axis] - k, v.shape[axis], axis=axis), axis)

    values = walk.compute(largest, [ordered], ordered.depth, "top_k")
    return [values, _position(walk, eqn, 1, ordered, where)]


def arg_extremum(walk: Walk, eqn: JaxprEqn, operands: list[Any], where: str) -> list[Any]:
    return [_position(walk, eqn, 0, walk.flush(operands[0]), where)]


def _position(walk: Walk, eqn: JaxprEqn, which: int, value: Slot, where: str) -> Slot:
    """An index that depends on the input: nothing continuous can be made of it, so unusable."""
    out = walk.slot(*traced_as(eqn.outvars[which]), value.depth)
    out.comparison = (eqn.primitive.name, [None, None])
    out.made = f"primitive '{eqn.primitive.name}' at {where}"
    return out

"""Crossings on the lines of an arrangement, all lines of many windows at once, in ball arithmetic.

A line's answer comes with whether every decision behind it is proven; whoever calls this counts the
others again in rational arithmetic.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact
from jaxregions.exact import Ball

__all__ = ["LINES", "Rows"]


class Rows(NamedTuple):
    """Some windows' refining hyperplanes g . u + h = 0 in the box |u_j| < 1, padded to one size."""

    index: np.ndarray  # (W, m) position in the flattened (unit, breakpoint) list, -1 padding
    unit: np.ndarray  # (W, m)
    slope: Ball  # (W, m, k)
    value: Ball  # (W, m)
    concurrent: np.ndarray  # (W, m): known to pass through the window's common point
    common: Ball  # (W, k)
    inside: np.ndarray  # (W,): the common point lies in the open window


def _line_count(origin: Ball, direction: Ball, rows: Rows, earlier, on_common, known):
    """Crossings of one line with earlier hyperplanes inside the window.

    Returns (distinct crossings, whether the line meets the open window, whether all is proven).
    ``known``: the line is known to meet the window.
    """
    slope, value = rows.slope, rows.value
    edge = Ball.exact(jnp.ones(()))
    centre = -(origin / direction)
    half = edge / Ball(abs(direction.mid), direction.rad)
    low, high = exact.ball_max(centre - half, 0), exact.ball_min(centre + half, 0)
    rate, level = _dot(slope, direction), value + _dot(slope, origin)
    crossing = -(level / rate)
    pinned = earlier & rows.concurrent & on_common
    regular = earlier & ~pinned
    within = exact.certainly_less(low, crossing) & exact.certainly_less(crossing, high)
    outside = exact.certainly_less(crossing, low) | exact.certainly_less(high, crossing)
    centred = rows.common - origin
    common = _dot(centred, direction) / _dot(direction, direction)
    keep = jnp.append(regular & within, pinned.any() & rows.inside)
    mid = jnp.where(keep, jnp.append(crossing.mid, common.mid), jnp.inf)
    rad = jnp.where(keep, jnp.append(crossing.rad, common.rad), 0.0)
    mid, rad = jax.lax.sort((mid, rad), num_keys=1)
    apart = exact.certainly_less(Ball(mid[:-1], rad[:-1]), Ball(mid[1:], rad[1:]))
    apart = apart | jnp.isposinf(mid[1:])
    misses = jnp.logical_and(exact.certainly_less(high, low), not known)
    meets = jnp.logical_or(exact.certainly_less(low, high), known)
    decided = jnp.all(~earlier | rate.nonzero()) & jnp.all(~regular | within | outside)
    settled = misses | (meets & decided & jnp.all(apart))
    return jnp.sum(keep), meets & ~misses, settled


def _dot(a: Ball, b: Ball) -> Ball:
    """sum_j a_j b_j over the last axis (k <= 3 terms)."""
    total = a[..., 0] * b[..., 0]
    for j in range(1, b.mid.shape[-1]):
        total = total + a[..., j] * b[..., j]
    return total


def _stack(*parts: Ball) -> Ball:
    return Ball(jnp.stack([p.mid for p in parts], -1), jnp.stack([p.rad for p in parts], -1))


def _cross(a: Ball, b: Ball) -> Ball:
    return _stack(
        *(a[(j + 1) % 3] * b[(j + 2) % 3] - a[(j + 2) % 3] * b[(j + 1) % 3] for j in range(3))
    )


def _scaled(factor: Ball, vector: Ball) -> Ball:
    return Ball(factor.mid[..., None], factor.rad[..., None]) * vector


def _one_line(rows: Rows, active):
    """k = 1: the window itself is the line."""
    zero, one = Ball.exact(jnp.zeros(1)), Ball.exact(jnp.ones(1))
    count, meets, settled = _line_count(zero, one, rows, active, True, True)
    return count[None], jnp.asarray(meets)[None], settled[None]


def _lines_in_plane(rows: Rows, active):
    """k = 2: the hyperplanes are the lines."""

    def line(i):
        slope, value = rows.slope[i], rows.value[i]
        direction = _stack(-slope[1], slope[0])
        origin = _scaled(-(value / _dot(slope, slope)), slope)
        earlier = active & (jnp.arange(active.size) < i) & (rows.unit != rows.unit[i])
        count, meets, settled = _line_count(
            origin, direction, rows, earlier, rows.concurrent[i], True
        )
        return count, meets & active[i], settled | ~active[i]

    return jax.vmap(line)(jnp.arange(active.size))


def _lines_in_space(rows: Rows, active):
    """k = 3: the lines are the intersections of two hyperplanes, (i, j) with j < i."""
    position = jnp.arange(active.size)

    def line(i, j):
        a, b = rows.slope[i], rows.slope[j]
        direction = _cross(a, b)
        size = _dot(direction, direction)
        origin = _scaled(rows.value[i], _cross(b, direction))
        origin = origin + _scaled(rows.value[j], _cross(direction, a))
        origin = -Ball(origin.mid, origin.rad) / Ball(size.mid[None], size.rad[None])
        exists = active[i] & active[j] & (j < i) & (rows.unit[i] != rows.unit[j])
        other = (rows.unit != rows.unit[i]) & (rows.unit != rows.unit[j])
        on_common = rows.concurrent[i] & rows.concurrent[j]
        earlier = active & (position < j) & other
        count, meets, settled = _line_count(origin, direction, rows, earlier, on_common, False)
        return count, meets & exists, settled | ~exists

    return jax.lax.map(lambda i: jax.vmap(partial(line, i))(position), position)


LINES = {
    1: jax.jit(jax.vmap(_one_line)),
    2: jax.jit(jax.vmap(_lines_in_plane)),
    3: jax.jit(jax.vmap(_lines_in_space)),
}

"""One layer's hyperplanes in windows of any dimension: in float64, with bounds of all errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.refinement.crossings import Lines, count_crossings, twins
from jaxregions.refinement.draws import Batch, Sample
from jaxregions.refinement.placed import Own, Placed, place, power_above, size
from jaxregions.refinement.restricted import place_slices

__all__ = ["counted", "disc", "far_apart", "finely", "through_one_point"]

U = 2.0**-53


def finely(own: Own, batch: Batch, simple: bool) -> Sample:
    """Windows of any kind, in float64."""
    unit, full = batch.units, batch.windows.basis is None
    slices = not full and batch.windows.dimension == 2
    placed: Placed = batch.each(place_slices if slices else place, own)

    if placed.radius.shape[-1] > 2:
        found, proven = jax.vmap(lambda p: far_apart(p, unit, simple))(placed)
    else:
        crossings = jax.vmap(lambda o, p: _crossings(o, p, unit, full, simple))
        found, proven = crossings(own.offset, placed)
    return counted(own, placed, placed.hits, found, placed.sure & proven, simple)


def through_one_point(own: Own) -> Any:
    return jnp.all(~jnp.isfinite(own.offset) | (own.offset == 0))


def counted(own: Own, where: Any, hits: Any, crossings: Any, sure: Any, simple: bool) -> Sample:
    point = where.radius, where.common, where.known

    def one(*numbers):
        return _regions(*numbers, simple=simple)

    return jax.vmap(one)(own.offset, *point, hits, crossings, sure)


def _regions(offset, radius, common, known, hits, crossings, sure, *, simple) -> Sample:
    """The counts of one draw from the crossings outside of the common point, (W,)."""
    k = radius.shape[-1]
    gap = radius - abs(common)  # of the exact sign where not 0
    inside = jnp.all(gap > 0, -1) & (known > 0)
    through = jnp.sum(offset == 0, dtype=np.int32)  # all of them refine if it is inside
    tie = jnp.all(gap >= 0, -1) & ~inside & (known > 0)
    # Whether it lies in the window's flat matters to what does not look at crossings one by one.
    told = known != 0 if simple or k > 2 else True
    sure = sure & ((through < 2) | (told & ~tie))
    if k > 2:
        lower, upper = _bracket(hits, k)
        return Sample(hits, lower, upper, sure)
    meeting = jnp.where(inside & (through > 0), through - 1, 0)
    count = 1 + hits - meeting if k == 1 else 1 + hits + meeting + crossings
    return Sample(hits, count.astype(float), count.astype(float), sure)


def far_apart(placed: Placed, unit: np.ndarray, simple: bool):
    """No crossings, and whether no two hyperplanes of a window may coincide."""
    none = jnp.zeros(placed.hit.shape[:1], np.int32)
    if simple or placed.radius.shape[-1] == 1:
        return none, none == 0
    close = jax.vmap(lambda g, error: twins(g, error, unit))(placed.slope, placed.slope_error)
    return none, ~jnp.any(placed.hit & close, -1)


def disc(centre: Any, radius: Any) -> tuple[Any, Any, Any]:
    """The power of two by which all windows (W, 2) come to lie in the unit disc, and they in it."""
    reach = power_above(jnp.max(size(centre) + size(radius)))
    return reach, centre / reach, radius / reach


def _lines(slope, value, slope_error, value_error, reach, zero, unit) -> Lines:
    """Lines in coordinates divided by ``reach``, their slopes scaled."""
    size = power_above(jnp.maximum(abs(slope[:, 0]), abs(slope[:, 1])))
    slope, slope_error = slope / size[:, None], slope_error / size
    value, value_error = value / size / reach, value_error / size / reach
    present = jnp.isfinite(value) & (abs(value) < 1.5) & (size > 0)
    value = jnp.where(present, value, 0)
    slope = jnp.where(present[:, None], slope, 0.5)
    return Lines(slope, value, slope_error, value_error, present, zero, unit)


def _crossings(offset: Any, placed: Placed, unit: np.ndarray, full: bool, simple: bool):
    """Crossings in every window but for those in the common point, and whether that is proven."""
    if placed.radius.shape[-1] == 1:
        return _points(offset, placed, unit, simple)
    if full:
        reach, centre, radius = disc(-placed.common, placed.radius)
        nothing, slack = jnp.zeros(offset.shape), jnp.full(len(placed.hit), 2 * U)
        own = _lines(placed.slope[0], -offset, nothing, nothing, reach, offset == 0, unit)
        return count_crossings(own, centre, radius, slack, placed.hit, simple=simple)

    def one(slope, value, slope_error, value_error, radius, hit, known):
        reach = power_above(size(radius))
        zero = (offset == 0) & (known > 0)
        own = _lines(slope, value, slope_error, value_error, reach, zero, unit)
        box = np.zeros((1, 2)), (radius / reach)[None], np.zeros(1), hit[None]
        count, proven = count_crossings(own, *box, simple=simple)
        vague = (own.slope_error > 2.0**-8) & hit
        return count[0], proven[0] & ~jnp.any(vague)

    spread = lambda a: jnp.broadcast_to(a, (len(placed.value), *a.shape[1:]))  # noqa: E731
    return jax.vmap(one)(
        spread(placed.slope),
        placed.value,
        spread(placed.slope_error),
        placed.value_error,
        placed.radius,
        placed.hit,
        placed.known,
    )


def _points(offset: Any, placed: Placed, unit: np.ndarray, simple: bool):
    """k = 1: hyperplanes are points; whether those of a window are proven distinct."""
    none = jnp.zeros(placed.hit.shape[:1], np.int32)
    if simple:
        return none, none == 0
    slope, bound = placed.slope[..., 0], placed.slope_error
    safe = abs(slope) > 2 * bound
    at = -placed.value / jnp.where(safe, slope, 1)
    error = (placed.value_error + abs(at) * bound) / jnp.where(safe, abs(slope) - bound, 1)
    error = jnp.where(safe, 1.01 * error + 4 * U * abs(at), np.inf)
    common = (offset == 0) & (placed.known > 0)[:, None]
    at = jnp.where(placed.hit & ~common, at, np.nan)
    close = abs(at[:, :, None] - at[:, None]) <= error[:, :, None] + error[:, None]
    close = close & (unit[:, None] != unit)
    return none, ~jnp.any(close, (1, 2))


def _bracket(hits: Any, k: int) -> tuple[Any, Any]:
    """1 + m and sum_{j <= k} C(m, j), rounded up, as floats."""
    m = hits.astype(float)
    upper, term = jnp.ones_like(m), jnp.ones_like(m)
    for j in range(1, k + 1):
        term = term * jnp.maximum(m - (j - 1), 0) / j
        upper = upper + term
    return 1 + m, upper

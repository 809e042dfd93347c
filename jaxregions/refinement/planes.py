"""Hits and regions of one layer's hyperplanes in windows: jitted, with every float decision proven.

What floats cannot decide is said so, (sample, window) by (sample, window), and ``measure_exactly``
decides it in rational arithmetic.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from jaxregions.arrangements import count_arrangement, region_bracket
from jaxregions.hyperplanes import Hyperplanes, count_hits
from jaxregions.refinement.crossings import Lines, count_crossings, twins
from jaxregions.refinement.placed import Own, Placed, own_numbers, place, power_above, size
from jaxregions.refinement.rounded import (
    chords,
    count_inside,
    intervals,
    reached,
    table,
    triple_points,
)
from jaxregions.windows import Window

__all__ = ["Sample", "measure_exactly", "measure_hits", "measure_planes"]

_CHUNK = 64  # samples of one step: their crossings stay in the cache
_FEW = 8  # of them are measured again at a time
U = 2.0**-53


class Sample(NamedTuple):
    """What the hyperplanes of one draw do to every window; arrays (W,).

    hits: (unit, breakpoint) hyperplanes that refine the open window, int32.
    lower, upper: bracket of the number of regions of the layer, float; equal for k <= 2.
    decided: every decision behind them is proven; elsewhere the numbers are only likely.
    """

    hits: Any
    lower: Any
    upper: Any
    decided: Any


def measure_planes(planes: Hyperplanes, windows: Window, *, simple: bool = False) -> Sample:
    """Hits and region counts of one draw's hyperplanes in all windows; jitted and vmapped at will.

    k = 1, 2: N = 1 + [k = 2] m + sum over distinct crossing points v in the window of (hyperplanes
    through v - 1), k = 1: of 1; hyperplanes with offset exactly 0 meet in one point. k >= 3: the
    bracket 1 + m <= N <= sum_{j <= k} C(m, j). A float decision within its rounding bound, three
    hyperplanes through one point or two that may coincide leave ``decided`` False. Under vmap over
    samples, no crossing is looked at where all offsets of a chunk of samples are 0.

    Args:
      planes: n units, K offsets each, taken as float64.
      windows: W, flat.
      simple: take it as known that no two hyperplanes coincide and no three meet in a point, but
        for offset exactly 0: so it is with probability one for weights that have a density.

    Raises:
      ValueError: windows with other than one leading axis, 64-bit numbers not enabled.

    Source: MATHEMATICS.md, window criterion and regions.
    """
    if len(windows.batch_shape) != 1:
        raise ValueError(
            f"windows: expected one leading axis, received the shape {windows.batch_shape}"
        )
    return _program(simple, True)(*_arrays(planes, windows))


def measure_hits(planes: Hyperplanes, windows: Window) -> tuple[Any, Any]:
    """Only (hits, decided) of ``measure_planes``, (W,) each."""
    sample = _program(True, False)(*_arrays(planes, windows))
    return sample.hits, sample.decided


def measure_exactly(planes: Hyperplanes, windows: Window) -> Sample:
    """``measure_planes`` on the host, decided in rational arithmetic where floats cannot.

    Regions are counted for k = 3 too.

    Args:
      planes: concrete, shared by all windows or one family per window (leading axes (W,)).
      windows: concrete, flat.
    """
    hits = count_hits(planes, windows).hits
    if windows.dimension <= 3:
        lower = upper = count_arrangement(planes, windows).regions.astype(np.float64)
    else:
        lower, upper = region_bracket(hits, windows.dimension)
    return Sample(hits.astype(np.int32), lower, upper, np.ones(hits.shape, bool))


def _arrays(planes: Hyperplanes, windows: Window) -> tuple[tuple[Any, Any, Any], Window]:
    """Normals, point and offsets, and the windows, all float64."""
    if jnp.result_type(float) != np.float64:
        raise ValueError("expected 64-bit numbers (jax.enable_x64), received a 32-bit context")
    arrays = planes.normal, planes.point, planes.offset
    return jax.tree.map(lambda a: jnp.asarray(a, np.float64), (arrays, windows))


class _Batch(NamedTuple):
    """Arguments (planes, windows) of many draws, flattened; those that move have a leading axis."""

    arrays: list[Any]
    moving: tuple[bool, ...]
    tree: Any

    def with_moving(self, function: Any) -> _Batch:
        """The same with other arrays where there is a leading axis."""
        pairs = zip(self.arrays, self.moving, strict=True)
        return self._replace(arrays=[function(a) if m else a for a, m in pairs])

    def each(self, function: Any, *more: Any) -> Any:
        """function(*more, planes, windows) of every draw."""
        axes = [0] * len(more), [0 if m else None for m in self.moving]

        def one(more, arrays):
            return function(*more, *jax.tree.unflatten(self.tree, arrays))

        return jax.vmap(one, in_axes=axes)(list(more), self.arrays)


@functools.lru_cache(maxsize=4)
def _program(simple: bool, regions: bool):
    """``measure_planes`` of one draw, which batches by chunks."""

    def block(batch, windows):
        own = batch.each(own_numbers)
        if not regions:
            return _only_hits(own, batch)
        if windows.basis is None and windows.dimension == 2 and own.offset.shape[-1] > 1:
            return _again(_rounded(own, batch, simple), batch, simple)
        return _finely(own, batch, simple)

    @custom_vmap
    def one(planes, windows):
        arrays, tree = jax.tree.flatten((planes, windows))
        batch = _Batch([jnp.asarray(a)[None] for a in arrays], (True,) * len(arrays), tree)
        return jax.tree.map(lambda a: a[0], block(batch, windows))

    @one.def_vmap
    def many(axis_size, in_batched, planes, windows):
        arrays, tree = jax.tree.flatten((planes, windows))
        batch = _Batch(arrays, tuple(jax.tree.leaves(tuple(in_batched))), tree)
        if axis_size <= _CHUNK or axis_size % _CHUNK:
            out = block(batch, windows)
        else:
            split = batch.with_moving(lambda a: a.reshape(-1, _CHUNK, *a.shape[1:]))

            def step(moving):
                rest = iter(moving)
                return block(split.with_moving(lambda _: next(rest)), windows)

            moving = [a for a, m in zip(split.arrays, split.moving, strict=True) if m]
            out = jax.lax.map(step, moving)
            out = jax.tree.map(lambda a: a.reshape(axis_size, *a.shape[2:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return one


def _behind(some: Any, function: Any, *arrays: Any) -> Any:
    """function(*arrays); where not ``some``, nothing is there: zeros, all proven.

    A branch, so that XLA makes the arrays once and not for every use.
    """

    def nothing(*arrays):
        return jax.tree.map(
            lambda a: jnp.full(a.shape, a.dtype == bool, a.dtype), jax.eval_shape(function, *arrays)
        )

    return jax.lax.cond(some, function, nothing, *arrays)


def _only_hits(own: Own, batch: _Batch) -> Sample:
    def found(own):
        placed = batch.each(place, own)
        return Sample(placed.hits, placed.hits, placed.hits, placed.sure)

    return _behind(jnp.any(jnp.isfinite(own.offset)), found, own)


def _units(batch: _Batch) -> np.ndarray:
    """Of every flattened hyperplane, NumPy (m,)."""
    _, _, offset = jax.tree.unflatten(batch.tree, batch.arrays)[0]
    units, breakpoints = offset.shape[-2:]
    return np.arange(units * breakpoints) // breakpoints


def _finely(own: Own, batch: _Batch, simple: bool) -> Sample:
    """Windows of any kind, in float64."""
    unit = _units(batch)
    full = jax.tree.unflatten(batch.tree, batch.arrays)[1].basis is None
    placed = batch.each(place, own)

    def apart():
        return jax.vmap(lambda p: _far_apart(p, unit, simple))(placed)

    def crossed():
        return jax.vmap(lambda o, p: _crossings(o, p, unit, full, simple))(own.offset, placed)

    if placed.radius.shape[-1] > 2:
        found, proven = apart()
    else:
        concurrent = _through_one_point(own) & jnp.all(placed.known == 1)
        found, proven = jax.lax.cond(concurrent, apart, crossed)
    return _counted(own, placed, placed.hits, found, placed.sure & proven)


def _rounded(own: Own, batch: _Batch, simple: bool) -> Sample:
    """Full-dimensional windows of dimension 2: in integers what they can decide."""
    unit = _units(batch)
    rows = len(unit) // 2 if simple else len(unit) - 1

    def concurrent(own):
        placed = batch.each(place, own)
        none, proven = jax.vmap(lambda p: _far_apart(p, unit, simple))(placed)
        return _counted(own, placed, placed.hits, none, placed.sure & proven)

    def spread(own):
        lines, boxes = batch.each(_in_one_disc, own)
        found = _behind(jnp.any(jnp.isfinite(own.offset)), tabulated, lines, *boxes)
        return _counted(own, batch.each(_at_point), *found)

    def tabulated(lines, centre, radius):
        at = jax.vmap(lambda c: table(c, unit, rows))(lines)
        middle, width = jax.vmap(intervals)(lines, centre, radius)
        hits, inside, sure = _behind(reached(width), compared, at, middle, width)
        return hits, inside, sure & lines.sure[:, None]

    def compared(at, middle, width):
        hits, inside, sure = jax.vmap(count_inside)(at, middle, width)
        if not simple:
            sure = sure & ~jax.vmap(triple_points)(at)[:, None]
        return hits, inside, sure

    return jax.lax.cond(_through_one_point(own), concurrent, spread, own)


def _again(sample: Sample, batch: _Batch, simple: bool) -> Sample:
    """The sample, and draws that it leaves open measured finely, a few at a time."""
    size = len(sample.decided)
    few = min(size, _FEW)

    def some(state):
        left, sample = state
        index = jnp.nonzero(left, size=few, fill_value=size)[0]
        part = batch.with_moving(lambda a: a.at[index].get(mode="clip"))
        found = _finely(part.each(own_numbers), part, simple)
        sample = jax.tree.map(lambda a, b: a.at[index].set(b, mode="drop"), sample, found)
        return left.at[index].set(False, mode="drop"), sample

    left = ~jnp.all(sample.decided, -1)
    return jax.lax.while_loop(lambda state: jnp.any(state[0]), some, (left, sample))[1]


def _through_one_point(own: Own) -> Any:
    return jnp.all(~jnp.isfinite(own.offset) | (own.offset == 0))


def _counted(own: Own, where: Any, hits: Any, crossings: Any, sure: Any) -> Sample:
    point = where.radius, where.common, where.known
    return jax.vmap(_regions)(own.offset, *point, hits, crossings, sure)


def _regions(offset, radius, common, known, hits, crossings, sure) -> Sample:
    """The counts of one draw from the crossings outside of the common point, (W,)."""
    k = radius.shape[-1]
    gap = radius - abs(common)  # of the exact sign where not 0
    inside = jnp.all(gap > 0, -1) & (known > 0)
    through = jnp.sum(offset == 0, dtype=np.int32)  # all of them refine if it is inside
    tie = jnp.all(gap >= 0, -1) & ~inside & (known > 0)
    sure = sure & ((through < 2) | ((known != 0) & ~tie))
    if k > 2:
        lower, upper = _bracket(hits, k)
        return Sample(hits, lower, upper, sure)
    meeting = jnp.where(inside & (through > 0), through - 1, 0)
    count = 1 + hits - meeting if k == 1 else 1 + hits + meeting + crossings
    return Sample(hits, count.astype(float), count.astype(float), sure)


def _far_apart(placed: Placed, unit: np.ndarray, simple: bool):
    """No crossings, and whether no two hyperplanes of a window may coincide."""
    none = jnp.zeros(placed.hit.shape[:1], np.int32)
    if simple or placed.radius.shape[-1] == 1:
        return none, none == 0
    close = jax.vmap(lambda g, error: twins(g, error, unit))(placed.slope, placed.slope_error)
    return none, ~jnp.any(placed.hit & close, -1)


class _Point(NamedTuple):
    """The hyperplanes' point in full-dimensional windows, as in ``Placed``."""

    radius: Any
    common: Any
    known: Any


def _at_point(planes: Any, windows: Window) -> _Point:
    common = planes[1] - windows.center
    return _Point(windows.radii(), common, jnp.ones(common.shape[:1], np.int32))


def _disc(centre: Any, radius: Any) -> tuple[Any, Any, Any]:
    """The power of two by which all windows (W, 2) come to lie in the unit disc, and they in it."""
    reach = power_above(jnp.max(size(centre) + size(radius)))
    return reach, centre / reach, radius / reach


def _in_one_disc(own: Own, planes: Any, windows: Window):
    """Full-dimensional windows: chords, and centres and radii of the windows.

    One geometry for all windows: coordinates around the hyperplanes' point.
    """
    reach, *boxes = _disc(windows.center - planes[1], windows.radii())
    nothing, zero = jnp.zeros(own.offset.shape), own.offset == 0
    return chords(own.columns.T, -own.offset / reach, nothing, nothing, zero, 2 * U), boxes


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
        reach, centre, radius = _disc(-placed.common, placed.radius)
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

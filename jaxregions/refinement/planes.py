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

from jaxregions import exact
from jaxregions.arrangements import count_arrangement, region_bracket
from jaxregions.hyperplanes import Hyperplanes, count_hits
from jaxregions.refinement.crossings import (
    Lines,
    count_crossings,
    count_rounded,
    rounded_intervals,
    twins,
)
from jaxregions.windows import Window

__all__ = ["Sample", "measure_exactly", "measure_hits", "measure_planes"]

_CHUNK = 128  # samples of one step: their crossings stay in the cache
_OPEN = np.int32(1 << 15)  # in a sum of words: a decision that floats leave open
_ONE_BY_ONE = 4  # terms of a sum
U, TINY = exact.unit_roundoff(np.float64), np.finfo(np.float64).tiny


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


class Placed(NamedTuple):
    """Flattened hyperplanes g . u + h = 0 in the windows' coordinates u, |u_j| < r_j; m of them.

    offset (m,), inf where there is none; slope (W or 1, m, k), value (W, m), with the errors of
    their lengths; hit (W, m): which refine for certain; hits and sure (W,): how many, and whether
    no decision is open; common (W, k): the hyperplanes' point, known (W,): 1 where it lies in the
    window's flat exactly, -1 where it certainly does not, else 0.
    """

    offset: Any
    slope: Any
    value: Any
    slope_error: Any
    value_error: Any
    radius: Any
    hit: Any
    hits: Any
    sure: Any
    common: Any
    known: Any


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

    Source: README, "The mathematics", window criterion and regions.
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


@functools.lru_cache(maxsize=4)
def _program(simple: bool, regions: bool):
    """``measure_planes`` of one draw, which batches by chunks."""

    def block(axes, planes, windows):
        placed = jax.vmap(_placed, in_axes=axes)(planes, windows)
        if not regions:
            return Sample(placed.hits, placed.hits, placed.hits, placed.sure)
        unit = np.arange(placed.offset.shape[-1]) // planes[2].shape[-1]

        def apart():
            return jax.vmap(lambda p: _far_apart(p, unit, simple))(placed)

        full = windows.basis is None

        def crossed():
            return jax.vmap(lambda p: _crossings(p, unit, full, simple))(placed)

        def rounded():
            parts = jax.vmap(lambda p: rounded_intervals(*_in_one_disc(p, unit)))(placed)

            def none(*_):
                return jnp.zeros_like(placed.hits), placed.hits >= 0

            # A branch, so that XLA makes the integers once and not for every comparison.
            found = jax.lax.cond(jnp.any(placed.hits > 1), jax.vmap(count_rounded), none, *parts)
            return jax.lax.cond(jnp.all(found[1] | ~placed.sure), lambda: found, crossed)

        if windows.dimension > 2:
            return jax.vmap(_regions)(placed, *apart())
        through_one = ~jnp.isfinite(placed.offset) | (placed.offset == 0)
        concurrent = jnp.all(through_one) & jnp.all(placed.known == 1)
        count = rounded if full and simple and windows.dimension == 2 and len(unit) > 1 else crossed
        return jax.vmap(_regions)(placed, *jax.lax.cond(concurrent, apart, count))

    @custom_vmap
    def one(planes, windows):
        axes = ((0, 0, 0), jax.tree.map(lambda _: 0, windows))
        single = jax.tree.map(lambda a: jnp.asarray(a)[None], (planes, windows))
        return jax.tree.map(lambda a: a[0], block(axes, *single))

    @one.def_vmap
    def batched(axis_size, in_batched, planes, windows):
        axes = jax.tree.map(lambda b: 0 if b else None, in_batched)
        batches = jax.tree.map(lambda b: b, in_batched)
        if axis_size <= _CHUNK or axis_size % _CHUNK:
            out = block(tuple(axes), planes, windows)
        else:
            leaves, tree = jax.tree.flatten((planes, windows))
            moving = jax.tree.leaves(tuple(batches))
            split = [
                a.reshape(-1, _CHUNK, *a.shape[1:])
                for a, b in zip(leaves, moving, strict=True)
                if b
            ]

            def step(parts):
                rest = iter(parts)
                whole = [next(rest) if b else a for a, b in zip(leaves, moving, strict=True)]
                return block(tuple(axes), *jax.tree.unflatten(tree, whole))

            out = jax.lax.map(step, split)
            out = jax.tree.map(lambda a: a.reshape(axis_size, *a.shape[2:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return one


def _placed(planes: tuple[Any, Any, Any], windows: Window) -> Placed:
    """One draw's hyperplanes in the coordinates of all windows, and which refine them."""
    normal, point, offset = planes
    d, k, radius = windows.input_dimension, windows.dimension, windows.radii()
    anchor = windows.center if windows.anchor is None else windows.anchor
    moved = anchor - point
    away = 2 * U * (_size(anchor) + _size(point) + _size(moved))
    common, known = -moved, jnp.ones(moved.shape[:1], np.int32)
    if offset.shape[1] > 1:
        normal = jnp.repeat(normal, offset.shape[1], axis=0)
    # Infinitely far away: what is no hyperplane.
    some = _along(jnp.any, jnp.logical_or, normal != 0)
    offset = jnp.where(some, offset.reshape(-1), np.inf)
    # At least the Euclidean length; of few entries their sum, which is cheap to make again.
    few = d <= _ONE_BY_ONE
    length = _along(jnp.sum, jnp.add, abs(normal)) if few else _size(normal)
    value, spread, slope = _dot(moved, normal), _size(moved), normal[None]
    slope_error = jnp.zeros((1, len(normal)))
    span = _size(radius)
    if windows.basis is not None:
        basis = windows.basis.reshape(-1, d, k)
        common, known = _in_slice(windows, point)
        slope = jnp.einsum("nd,wdk->wnk", normal, basis, precision="highest")
        stretch = _size(basis.reshape(len(basis), -1))
        slope_error = 2 * exact.gamma(d + 4, np.float64) * stretch[:, None] * length
        span = span * stretch
        if windows.shift is not None:
            value = value + jnp.einsum("wnk,wk->wn", slope, windows.shift, precision="highest")
            spread = spread + stretch * _size(windows.shift)
    value = value - offset
    rate = 2 * exact.gamma(d + k + 8, np.float64)
    own = rate * jnp.where(jnp.isfinite(offset), abs(offset), 0) + TINY
    reach = sum(abs(slope[..., j]) * radius[:, None, j] for j in range(k))
    margin = reach - abs(value)
    error = (rate * (spread + span) + away)[:, None] * length + own
    hit = margin > error
    # One sum of words, hits below and open decisions above: XLA reduces bits one by one.
    words = jnp.where(hit, np.int32(1), jnp.where(margin >= -error, _OPEN, np.int32(0)))
    words = jnp.sum(words, -1, dtype=np.int32)
    value_error = (rate * spread + away)[:, None] * length + own
    hits, sure = words & (_OPEN - 1), words < _OPEN
    return Placed(
        offset, slope, value, slope_error, value_error, radius, hit, hits, sure, common, known
    )


def _along(reduce: Any, pair: Any, vectors: Any) -> Any:
    """Over the last axis; few entries one by one, which fuses with what follows."""
    if vectors.shape[-1] > _ONE_BY_ONE:
        return reduce(vectors, -1)
    return functools.reduce(pair, (vectors[..., j] for j in range(vectors.shape[-1])))


def _size(vectors: Any) -> Any:
    return jnp.sqrt(_along(jnp.sum, jnp.add, vectors * vectors))


def _dot(moved: Any, normal: Any) -> Any:
    """moved . normal, (W, n)."""
    if moved.shape[-1] > _ONE_BY_ONE:
        return jnp.einsum("wd,nd->wn", moved, normal, precision="highest")
    return sum(moved[:, None, j] * normal[None, :, j] for j in range(moved.shape[-1]))


def _in_slice(windows: Window, point: Any) -> tuple[Any, Any]:
    """The point in slice coordinates from the centre, (W, k), and ``known`` of ``Placed``."""
    assert windows.basis is not None
    anchor = windows.center if windows.anchor is None else windows.anchor
    d, k = windows.input_dimension, windows.dimension
    moved = point - anchor
    basis = jnp.broadcast_to(windows.basis.reshape(-1, d, k), (len(anchor), d, k))
    orthonormal, _ = jnp.linalg.qr(basis)
    inner = jnp.einsum("wdk,wd->wk", orthonormal, moved, precision="highest")
    off = moved - jnp.einsum("wdk,wk->wd", orthonormal, inner, precision="highest")
    # Householder's Q is off by a modest multiple of d k u from one whose span is that of the basis,
    # times the condition number, which the smallest diagonal entry of R bounds well enough below.
    slack = _span_error(basis) * _size(moved)
    slack = slack + 4 * U * (_size(anchor) + _size(point))
    on = jnp.all(moved == 0, -1)
    known = jnp.where(on, 1, jnp.where(_size(off) > slack, -1, 0)).astype(np.int32)
    shift = 0.0 if windows.shift is None else windows.shift
    return jnp.zeros((*anchor.shape[:-1], k)) - shift, known


def _span_error(basis: Any) -> Any:
    """How far, relatively, a float projection onto the columns' span may be off; (W,)."""
    d, k = basis.shape[-2:]
    values = jnp.linalg.svd(basis, compute_uv=False)
    condition = values[..., 0] / values[..., -1]
    return 64 * exact.gamma(d * k + 16, np.float64) * condition


def _regions(placed: Placed, crossings: Any, proven: Any) -> Sample:
    """The counts from the crossings outside of the common point, (W,)."""
    hits, sure = placed.hits, placed.sure & proven
    k = placed.radius.shape[-1]
    gap = placed.radius - abs(placed.common)  # of the exact sign where not 0
    inside = jnp.all(gap > 0, -1) & (placed.known > 0)
    through = jnp.sum(placed.offset == 0, dtype=np.int32)  # all of them refine if it is inside
    tie = jnp.all(gap >= 0, -1) & ~inside & (placed.known > 0)
    sure = sure & ((through < 2) | ((placed.known != 0) & ~tie))
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
    close = twins(placed.slope, placed.slope_error, unit)
    return none, ~jnp.any(placed.hit & close, -1)


def _lines(slope, value, slope_error, value_error, reach, zero, unit) -> Lines:
    """Lines in coordinates divided by ``reach``, their slopes scaled."""
    size = _power_above(_along(jnp.max, jnp.maximum, abs(slope)))
    slope, slope_error = slope / size[:, None], slope_error / size
    value, value_error = value / size / reach, value_error / size / reach
    present = jnp.isfinite(value) & (abs(value) < 1.5) & (size > 0)
    value = jnp.where(present, value, 0)
    slope = jnp.where(present[:, None], slope, 0.5)
    return Lines(slope, value, slope_error, value_error, present, zero, unit)


def _in_one_disc(placed: Placed, unit: np.ndarray) -> tuple[Any, ...]:
    """Full-dimensional windows: lines, centres, radii, errors of the centres, hits.

    One geometry for all windows: coordinates around the hyperplanes' point.
    """
    centre = -placed.common
    away = 4 * U * _size(centre)
    reach = _power_above(jnp.max(_size(centre) + _size(placed.radius)))
    nothing, zero = jnp.zeros(placed.offset.shape), placed.offset == 0
    own = _lines(placed.slope[0], -placed.offset, nothing, nothing, reach, zero, unit)
    slack = away / reach + 2 * U
    return own, centre / reach, placed.radius / reach, slack, placed.hit


def _crossings(placed: Placed, unit: np.ndarray, full: bool, simple: bool):
    """Crossings in every window but for those in the common point, and whether that is proven."""
    if placed.radius.shape[-1] == 1:
        return _points(placed, unit, simple)
    if full:
        return count_crossings(*_in_one_disc(placed, unit), simple=simple)
    zero = placed.offset == 0

    def one(slope, value, slope_error, value_error, radius, hit, known):
        reach = _power_above(_size(radius))
        own = _lines(slope, value, slope_error, value_error, reach, zero & (known > 0), unit)
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


def _points(placed: Placed, unit: np.ndarray, simple: bool):
    """k = 1: hyperplanes are points; whether those of a window are proven distinct."""
    none = jnp.zeros(placed.hit.shape[:1], np.int32)
    if simple:
        return none, none == 0
    slope, bound = placed.slope[..., 0], placed.slope_error
    safe = abs(slope) > 2 * bound
    at = -placed.value / jnp.where(safe, slope, 1)
    error = (placed.value_error + abs(at) * bound) / jnp.where(safe, abs(slope) - bound, 1)
    error = jnp.where(safe, 1.01 * error + 4 * U * abs(at), np.inf)
    common = (placed.offset == 0) & (placed.known > 0)[:, None]
    at = jnp.where(placed.hit & ~common, at, np.nan)
    close = abs(at[:, :, None] - at[:, None]) <= error[:, :, None] + error[:, None]
    close = close & (unit[:, None] != unit)
    return none, ~jnp.any(close, (1, 2))


def _power_above(x: Any) -> Any:
    """2^e with x / 2^e in [1/2, 1), exactly; 0 for 0."""
    fraction, _ = jnp.frexp(x)
    return jnp.where(x > 0, x / jnp.where(x > 0, fraction, 1), 0)


def _bracket(hits: Any, k: int) -> tuple[Any, Any]:
    """1 + m and sum_{j <= k} C(m, j), rounded up, as floats."""
    m = hits.astype(float)
    upper, term = jnp.ones_like(m), jnp.ones_like(m)
    for j in range(1, k + 1):
        term = term * jnp.maximum(m - (j - 1), 0) / j
        upper = upper + term
    return 1 + m, upper

"""Crossings on the lines of an arrangement, all lines of many windows at once, in ball arithmetic.

A line's answer comes with whether every decision behind it is proven; whoever calls this counts the
others again in rational arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact
from jaxregions.exact import Ball

__all__ = ["WINDOWS", "Rows", "count_crossings", "lines_of"]


WINDOWS = 64  # at a time
STEP = 512  # lines at a time


class Plane(NamedTuple):
    """One hyperplane of ``Rows``, or several."""

    unit: Any
    slope: Ball
    value: Ball
    concurrent: Any


class Rows(NamedTuple):
    """Some windows' refining hyperplanes g . u + h = 0 in the box |u_j| < 1, padded to one size."""

    index: Any  # (W, m) position in the flattened (unit, breakpoint) list, -1 padding; None in jax
    unit: np.ndarray  # (W, m)
    slope: Ball  # (W, m, k)
    value: Ball  # (W, m)
    concurrent: np.ndarray  # (W, m): known to pass through the window's common point
    common: Ball  # (W, k)
    inside: np.ndarray  # (W,): the common point lies in the open window


class Line(NamedTuple):
    """Lines origin + t direction, inside the window for low < t < high; of (L,) lines.

    Coordinates and slopes of windows with k < 3 are filled up with zeros, so that the same compiled
    code counts the crossings for every k.
    """

    origin: Ball  # (L, 3)
    direction: Ball  # (L, 3)
    low: Ball
    high: Ball
    known: Any  # to meet the window
    on_common: Any  # all its hyperplanes are known to pass through the common point


def _crossings(line: Line, rows: Rows, earlier):
    """Crossings of one line with earlier hyperplanes inside the window.

    Returns (distinct crossings, whether the line meets the open window, whether all is proven).
    """
    origin, direction, low, high, known, on_common = line
    rate, level = _dot(rows.slope, direction), rows.value + _dot(rows.slope, origin)
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
    misses = exact.certainly_less(high, low) & ~known
    meets = exact.certainly_less(low, high) | known
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


@jax.jit
@jax.vmap
def _placed(_: Any, own: tuple[Plane, ...]) -> Line:
    """The line that some hyperplanes share, fewer by one than the window has dimensions."""
    origin, direction = _MEETING[len(own)](*own)
    centre = -(origin / direction)
    half = Ball.exact(jnp.ones(())) / Ball(abs(direction.mid), direction.rad)
    low, high = exact.ball_max(centre - half, 0), exact.ball_min(centre + half, 0)
    origin, direction = jax.tree.map(_filled, (origin, direction))
    known = len(own) < 2  # the window itself, or a hyperplane that refines it
    on_common = jnp.all(jnp.array([plane.concurrent for plane in own], bool))
    return Line(origin, direction, low, high, jnp.asarray(known), on_common)


@jax.jit
def _counted(rows: Rows, active, window, before, units, lines: Line):
    """``_crossings`` of lines (L,) with the first ``before`` hyperplanes of their windows.

    units: (L, 2), whose hyperplanes are parallel to a line's own.
    """

    def one(window, before, units, line):
        there, present = jax.tree.map(lambda a: a[window], (rows, active))
        parallel = (there.unit[:, None] == units).any(1)
        return _crossings(line, there, present & (jnp.arange(present.size) < before) & ~parallel)

    return jax.vmap(one)(window, before, units, lines)


def _filled(array):
    """Zeros for the axes that three dimensions have more, at the end."""
    xp: Any = np if isinstance(array, np.ndarray) else jnp
    return xp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, 3 - array.shape[-1])])


def _whole() -> tuple[Ball, Ball]:
    """k = 1: the window itself is the line."""
    return Ball.exact(jnp.zeros(1)), Ball.exact(jnp.ones(1))


def _plane(a: Plane) -> tuple[Ball, Ball]:
    """k = 2: the hyperplanes are the lines."""
    origin = _scaled(-(a.value / _dot(a.slope, a.slope)), a.slope)
    return origin, _stack(-a.slope[1], a.slope[0])


def _intersection(a: Plane, b: Plane) -> tuple[Ball, Ball]:
    """k = 3: the lines are the intersections of two hyperplanes."""
    direction = _cross(a.slope, b.slope)
    size = _dot(direction, direction)
    origin = _scaled(a.value, _cross(b.slope, direction))
    origin = origin + _scaled(b.value, _cross(direction, a.slope))
    return -Ball(origin.mid, origin.rad) / Ball(size.mid[None], size.rad[None]), direction


_MEETING: dict[int, Callable[..., tuple[Ball, Ball]]] = {0: _whole, 1: _plane, 2: _intersection}


def lines_of(unit: np.ndarray, active: np.ndarray, k: int) -> np.ndarray:
    """The lines of a window of dimension k: (L, k), the window and the k - 1 rows it lies on.

    Rows of a line decrease, so that the last is the one whose earlier hyperplanes cross it. Those
    of one unit are parallel and have no line.
    """
    if k < 3:
        found = active if k == 2 else active.any(1)
        return np.argwhere(found)
    earlier = np.tri(active.shape[1], k=-1, dtype=bool)
    apart = unit[:, :, None] != unit[:, None]
    return np.argwhere(active[:, :, None] & active[:, None] & earlier & apart)


def count_crossings(
    rows: Rows, active: np.ndarray, lines: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per line: distinct crossings, whether it meets its open window, whether both are proven.

    Args:
      rows: of at most ``WINDOWS`` windows.
      active: (W, m), neither padding nor a duplicate.
      lines: as from ``lines_of``.
    """
    window, *places = lines.T
    before = places[-1] if places else np.full(len(lines), active.shape[1])
    # Few distinct shapes, so few compilations: powers of two from 32 up, steps filled up.
    sizes = 1 << np.ceil(np.log2(np.maximum(before, 32))).astype(np.int64)
    planes = Plane(rows.unit, rows.slope, rows.value, rows.concurrent)
    steps = []
    with jax.enable_x64(True):
        for size in np.unique(sizes):
            first = jax.device_put(_first(rows, planes, active, int(size)))
            at = np.flatnonzero(sizes == size)
            for start in range(0, len(at), STEP):
                some = at[start : start + STEP]
                step = np.resize(some, STEP)
                there = window[step]
                own = tuple(_at(planes, there, place[step]) for place in places)
                units = np.stack([plane.unit for plane in own] or [np.full(STEP, -1)], axis=1)
                line = _placed(there, own)
                steps.append((some, _counted(*first, there, before[step], units[:, [0, -1]], line)))
    crossings, meets, settled = np.zeros(len(lines), np.int64), *np.zeros((2, len(lines)), bool)
    for some, found in steps:
        for out, part in zip((crossings, meets, settled), found, strict=True):
            out[some] = np.asarray(part)[: len(some)]
    return crossings, meets, settled


def _at(planes: Plane, window: np.ndarray, row: np.ndarray) -> Plane:
    return jax.tree.map(lambda a: a[window, row], planes)


def _first(rows: Rows, planes: Plane, active: np.ndarray, size: int) -> tuple[Rows, np.ndarray]:
    """The first ``size`` rows, of ``WINDOWS`` windows: missing rows are zero, windows repeated."""
    missing = max(0, size - active.shape[1])

    def windows(a):
        return np.resize(a, (WINDOWS, *a.shape[1:]))

    def both(a):
        return np.pad(windows(a[:, :size]), ((0, 0), (0, missing), *[(0, 0)] * (a.ndim - 2)))

    unit, slope, value, concurrent = jax.tree.map(both, planes)
    common, inside = jax.tree.map(windows, (rows.common, rows.inside))
    slope, common = jax.tree.map(_filled, (slope, common))
    return Rows(None, unit, slope, value, concurrent, common, inside), both(active)

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

__all__ = ["PAIRS", "WINDOWS", "Rows", "count_crossings", "lines_of"]


WINDOWS = 64  # of one step
PAIRS = 1 << 16  # line-hyperplane pairs of one step


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


@jax.jit
def _step(rows: Rows, active, window, before, own: tuple[Plane, ...]):
    """Crossings of lines (L,) with the first ``before`` hyperplanes of their windows."""

    def line(window, before, own):
        there, present = jax.tree.map(lambda a: a[window], (rows, active))
        earlier = present & (jnp.arange(present.size) < before)
        on_common = jnp.asarray(True)
        for plane in own:
            earlier, on_common = earlier & (there.unit != plane.unit), on_common & plane.concurrent
        origin, direction = _LINES[len(own)](*own)
        known = len(own) < 2  # the window itself, or a hyperplane that refines it
        return _line_count(origin, direction, there, earlier, on_common, known)

    return jax.vmap(line)(window, before, own)


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


_LINES: dict[int, Callable[..., tuple[Ball, Ball]]] = {0: _whole, 1: _plane, 2: _intersection}


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
    # Few distinct shapes, so few compilations: powers of two from 16 up, the lines filled up.
    sizes = 1 << np.ceil(np.log2(np.maximum(before, 16))).astype(np.int64)
    steps = []
    with jax.enable_x64(True):
        for size in np.unique(sizes):
            at = np.flatnonzero(sizes == size)
            first = jax.device_put(_first(rows, active, int(size)))
            chunk = max(1, PAIRS // int(size))
            for start in range(0, len(at), chunk):
                some = at[start : start + chunk]
                full = np.resize(some, chunk)
                own = tuple(_planes(rows, window[full], place[full]) for place in places)
                steps.append((some, _step(*first, window[full], before[full], own)))
    crossings, meets, settled = np.zeros(len(lines), np.int64), *np.zeros((2, len(lines)), bool)
    for some, found in steps:
        for out, part in zip((crossings, meets, settled), found, strict=True):
            out[some] = np.asarray(part)[: len(some)]
    return crossings, meets, settled


def _planes(rows: Rows, window: np.ndarray, row: np.ndarray) -> Plane:
    return jax.tree.map(lambda a: a[window, row], _all_planes(rows))


def _all_planes(rows: Rows) -> Plane:
    return Plane(rows.unit, rows.slope, rows.value, rows.concurrent)


def _first(rows: Rows, active: np.ndarray, size: int) -> tuple[Rows, np.ndarray]:
    """The first ``size`` rows, of ``WINDOWS`` windows: missing rows are zero, windows repeated."""
    missing = max(0, size - active.shape[1])

    def windows(a):
        return np.resize(a, (WINDOWS, *a.shape[1:]))

    def both(a):
        return np.pad(windows(a[:, :size]), ((0, 0), (0, missing), *[(0, 0)] * (a.ndim - 2)))

    unit, slope, value, concurrent = jax.tree.map(both, _all_planes(rows))
    common, inside = jax.tree.map(windows, (rows.common, rows.inside))
    return Rows(None, unit, slope, value, concurrent, common, inside), both(active)

"""Where one draw's hyperplanes lie in the coordinates of windows, and which refine them; bounds."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxregions import exact
from jaxregions.windows import Window

__all__ = ["Own", "Placed", "in_slice", "own_numbers", "place", "power_above", "refine", "size"]

_ONE_BY_ONE = 4  # terms of a sum
_OPEN = np.int32(1 << 15)  # in a sum of words: a decision that floats leave open
U, TINY = exact.unit_roundoff(np.float64), np.finfo(np.float64).tiny


class Own(NamedTuple):
    """What does not depend on the windows of m flattened hyperplanes.

    columns: (d, m) normals. length (m,): of the normals, or more. offset (m,): inf where there is
    no hyperplane. error (m,): of the offset's part in a value.
    """

    columns: Any
    length: Any
    offset: Any
    error: Any


class Placed(NamedTuple):
    """Flattened hyperplanes g . u + h = 0 in the windows' coordinates u, |u_j| < r_j; m of them.

    slope (W or 1, m, k), value (W, m), with the errors of their lengths; hit (W, m): which refine
    for certain; hits and sure (W,): how many, and whether no decision is open; common (W, k): the
    hyperplanes' point, known (W,): 1 where it lies in the window's flat exactly, -1 where it
    certainly does not, else 0.
    """

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


def own_numbers(planes: tuple[Any, Any, Any], windows: Window) -> Own:
    """The numbers of one draw's hyperplanes: normal (n, d), point (d,), offset (n, K)."""
    normal, _, offset = planes
    if offset.shape[1] > 1:
        normal = jnp.repeat(normal, offset.shape[1], axis=0)
    columns = normal.T
    # Infinitely far away: what is no hyperplane.
    some = _over(jnp.any, jnp.logical_or, columns != 0)
    offset = jnp.where(some, offset.reshape(-1), np.inf)
    # At least the Euclidean length.
    few = len(columns) <= _ONE_BY_ONE
    length = sum(abs(c) for c in columns) if few else jnp.sqrt(jnp.sum(columns**2, 0))
    error = _rate(windows) * jnp.where(jnp.isfinite(offset), abs(offset), 0) + TINY
    return Own(columns, length, offset, error)


def place(own: Own, planes: tuple[Any, Any, Any], windows: Window) -> Placed:
    """One draw's hyperplanes in the coordinates of all windows."""
    point, columns = planes[1], own.columns
    d, k, radius = windows.input_dimension, windows.dimension, windows.radii()
    anchor = windows.center if windows.anchor is None else windows.anchor
    moved = anchor - point
    away = 2 * U * (size(anchor) + size(point) + size(moved))
    common, known = -moved, jnp.ones(moved.shape[:1], np.int32)
    value, spread, slope = _dot(moved, columns), size(moved), columns.T[None]
    slope_error = jnp.zeros((1, columns.shape[1]))
    span = size(radius)
    if windows.basis is None:
        reach = _dot(radius, abs(columns))
    else:
        basis = windows.basis.reshape(-1, d, k)
        common, known = in_slice(windows, point)
        slope = jnp.einsum("dn,wdk->wnk", columns, basis, precision="highest")
        stretch = size(basis.reshape(len(basis), -1))
        slope_error = 2 * exact.gamma(d + 4, np.float64) * stretch[:, None] * own.length
        span = span * stretch
        if windows.shift is not None:
            value = value + jnp.einsum("wnk,wk->wn", slope, windows.shift, precision="highest")
            spread = spread + stretch * size(windows.shift)
        reach = sum(abs(slope[..., j]) * radius[:, None, j] for j in range(k))
    value = value - own.offset
    rate = _rate(windows)
    margin = reach - abs(value)
    error = (rate * (spread + span) + away)[:, None] * own.length + own.error
    refining = refine(margin, error)
    value_error = (rate * spread + away)[:, None] * own.length + own.error
    return Placed(slope, value, slope_error, value_error, radius, *refining, common, known)


def refine(margin: Any, error: Any) -> tuple[Any, Any, Any]:
    """``hit``, ``hits`` and ``sure`` of ``Placed`` from margins (W, m) > 0 of what refines."""
    hit = margin > error
    # One sum of words, hits below and open decisions above: XLA reduces bits one by one.
    words = jnp.where(hit, np.int32(1), jnp.where(margin >= -error, _OPEN, np.int32(0)))
    if words.shape[-1] % _ONE_BY_ONE == 0:  # and a few added beforehand spare it a seventh
        words = sum(jnp.split(words, _ONE_BY_ONE, -1))
    words = jnp.sum(words, -1, dtype=np.int32)
    return hit, words & (_OPEN - 1), words < _OPEN


def power_above(x: Any) -> Any:
    """2^e with x / 2^e in [1/2, 1), exactly; 0 for 0."""
    fraction, _ = jnp.frexp(x)
    return jnp.where(x > 0, x / jnp.where(x > 0, fraction, 1), 0)


def size(vectors: Any) -> Any:
    """Euclidean lengths along the last axis."""
    if vectors.shape[-1] > _ONE_BY_ONE:
        return jnp.sqrt(jnp.sum(vectors * vectors, -1))
    return jnp.sqrt(sum(vectors[..., j] * vectors[..., j] for j in range(vectors.shape[-1])))


def _over(reduce: Any, pair: Any, rows: Any) -> Any:
    """Over the first axis; few entries one by one, which fuses with what follows."""
    return reduce(rows, 0) if len(rows) > _ONE_BY_ONE else functools.reduce(pair, rows)


def _rate(windows: Window) -> float:
    """Relative error of a value, twice over."""
    return 2 * exact.gamma(windows.input_dimension + windows.dimension + 8, np.float64)


def _dot(vectors: Any, columns: Any) -> Any:
    """vectors (W, d) . columns (d, m), (W, m)."""
    if len(columns) > _ONE_BY_ONE:
        return jnp.einsum("wd,dn->wn", vectors, columns, precision="highest")
    return sum(vectors[:, None, j] * columns[None, j] for j in range(len(columns)))


def in_slice(windows: Window, point: Any) -> tuple[Any, Any]:
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
    slack = _span_error(basis) * size(moved)
    slack = slack + 4 * U * (size(anchor) + size(point))
    on = jnp.all(moved == 0, -1)
    known = jnp.where(on, 1, jnp.where(size(off) > slack, -1, 0)).astype(np.int32)
    shift = 0.0 if windows.shift is None else windows.shift
    return jnp.zeros((*anchor.shape[:-1], k)) - shift, known


def _span_error(basis: Any) -> Any:
    """How far, relatively, a float projection onto the columns' span may be off; (W,)."""
    d, k = basis.shape[-2:]
    values = jnp.linalg.svd(basis, compute_uv=False)
    condition = values[..., 0] / values[..., -1]
    return 64 * exact.gamma(d * k + 16, np.float64) * condition

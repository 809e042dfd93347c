"""The affine maps of a stage on convex cells, enclosed in float64, and exactly.

On a cell of the earlier stages a switching value is affine, so its values at a witness u and at
k points u + step_j e_j of the closed cell determine it:

    z(v) = z(u) + sum_j (z(u + step_j e_j) - z(u)) / step_j (v_j - u_j).

No derivative is taken: the values come with rigorous bounds, or exactly, and so do the maps. In
windows of many dimensions those that can change sign in the window have gradients, in reverse with
rigorous bounds, and the others no slope: their value at u with a bound on how far it is from any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxregions import exact
from jaxregions.engines.points import CORNER, Frame, U, Vertices, input_point, lift
from jaxregions.engines.steps import in_steps
from jaxregions.tracing import (
    CPAFunction,
    bounded_gradient,
    bounded_values,
    compiled,
    exact_values,
    prepare,
    prepare_reverse,
)
from jaxregions.windows import Window

__all__ = [
    "Rows",
    "enclosed_rows",
    "enclosed_values",
    "exact_rows",
    "exact_spans",
    "rounded_rows",
    "slack_factor",
]

_SMALL = np.finfo(np.float64).tiny
_MANY = 128  # dimensions: gradients instead of k + 1 values


class Rows(NamedTuple):
    """Switching values slope . u + value on one cell.

    slope: (n, k). value: (n,). error: (n,) how far the float row can be from the exact one anywhere
    in the window, with a share for the rounding of sums of rows. zero: (n,) the value vanishes on
    the whole cell, exactly. lost: (n,) the floats say nothing.
    """

    slope: np.ndarray
    value: np.ndarray
    error: np.ndarray
    zero: np.ndarray
    lost: np.ndarray


def _values(prepared: Any, x: Any, error: Any, stage: int):
    def one(point, e):
        return tuple(bounded_values(prepared, point, e, stage))

    return jax.vmap(one)(x.reshape(-1, *prepared.net.input_shape), error)


def enclosed_values(
    net: CPAFunction,
    frame: Frame,
    window: np.ndarray,
    u: np.ndarray,
    stage: int,
    ball: Any = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(P, size) switching values of a stage at the points u (P, k) of windows (P,), and how far
    each can be from the exact one, at the point or at any whose coordinates are within ``ball``."""
    points = _at(window, u, ball)
    with jax.enable_x64(True):
        prepared = prepare(net)
        run = compiled(_values, prepared.structure, static=(3,))
        values, bound = in_steps(
            lambda x, e: run(prepared, x, e, stage),
            len(u),
            lambda part: lift(frame, points.rows(part)),
        )
    return values, bound


def slack_factor(net: CPAFunction, dimension: int) -> float:
    """Relative rounding error of a sum of any of the network's rows at a point."""
    return exact.gamma(sum(s.size for s in net.stages) + 6 * dimension + 64, np.float64)


def enclosed_rows(
    net: CPAFunction,
    frame: Frame,
    window: np.ndarray,
    radius: np.ndarray,
    u: np.ndarray,
    step: np.ndarray,
    stage: int,
) -> list[Rows]:
    """The rows of a stage on many cells.

    Args:
      window, radius, u, step: (C,), (C, k), (C, k), (C, k) of each cell; u + step must be what
        floats make of it.
    """
    if u.shape[1] < _MANY:
        return _by_points(net, frame, window, radius, u, step, stage)
    rows = _by_gradients(net, frame, window, radius, u, stage)
    left = [i for i, own in enumerate(rows) if own.lost.any()]  # choices that are not certain
    if left:
        some = (window[left], radius[left], u[left], step[left])
        for i, own in zip(left, _by_points(net, frame, *some, stage), strict=True):
            rows[i] = own
    return rows


def _by_gradients(
    net: CPAFunction,
    frame: Frame,
    window: np.ndarray,
    radius: np.ndarray,
    u: np.ndarray,
    stage: int,
) -> list[Rows]:
    """The same, with slopes only where a value may change its sign in the window.

    The bound on a value in a ball holds for the affine map, too: it follows the same choices.
    """
    (count, k), size = u.shape, net.stages[stage].size
    z, bound = enclosed_values(net, frame, window, u, stage)
    ball = (radius + np.abs(u)).max(axis=1) * (1 + 4 * U)
    _, far = enclosed_values(net, frame, window, u, stage, ball)
    zero = (z == 0) & (far == 0)
    cell, entry = np.nonzero(~zero & ~(np.abs(z) > far))
    slope, value, error = np.zeros((count, size, k)), z.copy(), far.copy()
    gradient, steep = _gradients(net, frame, window[cell], u[cell], stage, entry)
    with np.errstate(all="ignore"):
        at, reach = u[cell], (radius + np.abs(u))[cell]
        slope[cell, entry], first = gradient, z[cell, entry]
        level = first - (gradient * at).sum(axis=1)
        moved = np.abs(first) + (np.abs(gradient) * np.abs(at)).sum(axis=1)
        extent = np.abs(level) + (np.abs(gradient) * radius[cell]).sum(axis=1)
        off = bound[cell, entry] + (steep * reach).sum(axis=1)
        off = off + slack_factor(net, k) * (moved + extent) + _SMALL
        value[cell, entry], error[cell, entry] = level, off * (1 + 64 * (k + 1) * U)
        lost = np.zeros(z.shape, bool)
        lost[cell, entry] = ~np.isfinite(off) | (error[cell, entry] > extent)
    return [Rows(*columns) for columns in zip(slope, value, error, zero, lost, strict=True)]


def _gradients(
    net: CPAFunction,
    frame: Frame,
    window: np.ndarray,
    u: np.ndarray,
    stage: int,
    entry: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (P, k) of switching values at the points u (P, k), by slice coordinate, and how far
    each can be from the exact one."""
    if not len(u):
        return np.zeros(u.shape), np.zeros(u.shape)
    points = _at(window, u)
    with jax.enable_x64(True):
        reverse = prepare_reverse(net)
        run = compiled(_gradient, reverse.prepared.structure, static=(4,))
        gradient, bound = in_steps(
            lambda x, e, one: run(reverse, x, e, one, stage),
            len(u),
            lambda part: (*lift(frame, points.rows(part)), entry[part]),
        )
    if frame.basis is None:
        return gradient, bound
    basis = np.broadcast_to(frame.basis, (len(frame.base), *frame.basis.shape[-2:]))[window]
    rounding = exact.gamma(gradient.shape[1] + 4, np.float64) * np.abs(gradient) + _SMALL
    spread = np.einsum("pd,pdk->pk", bound + rounding, np.abs(basis)) * (1 + 8 * U)
    return np.einsum("pd,pdk->pk", gradient, basis), spread * (1 + 2 * len(gradient[0]) * U)


def _gradient(reverse: Any, x: Any, error: Any, entry: Any, stage: int):
    def one(point, e, which):
        return tuple(bounded_gradient(reverse, point, e, stage, which))

    return jax.vmap(one)(x.reshape(-1, *reverse.prepared.net.input_shape), error, entry)


def _at(window: np.ndarray, u: np.ndarray, error: Any = 0.0) -> Vertices:
    none = np.full(len(u), CORNER)
    error = np.broadcast_to(error, len(u))
    return Vertices(u, error, window, none, none, none, none, none)


def _by_points(
    net: CPAFunction,
    frame: Frame,
    window: np.ndarray,
    radius: np.ndarray,
    u: np.ndarray,
    step: np.ndarray,
    stage: int,
) -> list[Rows]:
    """The same, from k + 1 values."""
    count, k = u.shape
    size = net.stages[stage].size
    at = np.repeat(u[:, None], k + 1, axis=1)
    at[:, np.arange(1, k + 1), np.arange(k)] = u + step
    rows = np.repeat(window, k + 1)
    z, bound = enclosed_values(net, frame, rows, at.reshape(-1, k), stage)
    z, bound = z.reshape(count, k + 1, size), bound.reshape(count, k + 1, size)
    with np.errstate(all="ignore"):
        first, across = z[:, :1], step[:, :, None]
        slope = (z[:, 1:] - first) / across
        spread = bound[:, 1:] + bound[:, :1] + 2 * U * (np.abs(z[:, 1:]) + np.abs(first))
        steep = spread / np.abs(across) * (1 + 8 * U) + 8 * U * np.abs(slope) + _SMALL
        value = z[:, 0] - np.einsum("cjn,cj->cn", slope, u)
        moved = np.abs(z[:, 0]) + np.einsum("cjn,cj->cn", np.abs(slope), np.abs(u))
        reach = np.einsum("cjn,cj->cn", steep, radius + np.abs(u))
        extent = np.abs(value) + np.einsum("cjn,cj->cn", np.abs(slope), radius)
        error = bound[:, 0] + reach + slack_factor(net, k) * (moved + extent) + _SMALL
        error = error * (1 + 64 * (k + 1) * U)
    zero = (z == 0).all(axis=1) & (bound == 0).all(axis=1)
    lost = ~zero & ((np.abs(z) <= bound).all(axis=1) | ~np.isfinite(error) | (error > extent))
    return [
        Rows(*columns)
        for columns in zip(np.swapaxes(slope, 1, 2), value, error, zero, lost, strict=True)
    ]


def exact_spans(u: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A witness and its steps in rationals: those to what floats make of u + step."""
    start = exact.rationals(u)
    return start, exact.rationals(u + step) - start


def exact_rows(
    net: CPAFunction,
    windows: Window,
    window: int,
    start: np.ndarray,
    step: np.ndarray,
    stage: int,
    pause: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (n, k) and values (n,) at the window's centre, from values at a point and at steps
    along the axes, all in rationals. pause: called before each; what it raises ends it."""

    def at(point):
        pause()
        x = input_point(windows, window, point).reshape(net.input_shape)
        return exact_values(net, x, stage)

    first = at(start)
    slope = np.empty((len(first), len(start)), object)
    for j, length in enumerate(step):
        moved = start.copy()
        moved[j] = moved[j] + length
        slope[:, j] = (at(moved) - first) / length
    return slope, first - slope @ start


@np.errstate(all="ignore")
def rounded_rows(
    net: CPAFunction, slope: np.ndarray, value: np.ndarray, radius: np.ndarray
) -> Rows:
    """Exact rows as float64, with their errors."""
    flat = np.array([exact.rounded(x) for x in slope.ravel()], np.float64).reshape(slope.shape)
    level = np.array([exact.rounded(x) for x in value], np.float64)
    extent = np.abs(level) + np.abs(flat) @ radius
    error = 2 * slack_factor(net, slope.shape[1]) * extent + _SMALL
    zero = (slope == 0).all(axis=1) & (value == 0)
    return Rows(flat, level, error, zero, np.zeros(len(value), bool))

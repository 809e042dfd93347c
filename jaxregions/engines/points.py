"""Vertices of a subdivision: floats with error bounds, and how to get each of them exactly.

A vertex is a corner of its window, or the zero of one switching value on the segment between two
earlier vertices. The float coordinates are for speed; the recipe is what the vertex *is*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from jaxregions import exact
from jaxregions.tracing import CPAFunction, exact_values
from jaxregions.windows import Window

__all__ = [
    "CORNER",
    "Ledger",
    "U",
    "Vertices",
    "between",
    "corners",
    "crossing",
    "ledger_of",
    "lift",
    "numbered",
    "point",
    "unnumbered",
    "values",
    "widest",
]

U = exact.unit_roundoff(np.float64)
CORNER = -1
REMEMBERED = 4096  # exact evaluations kept


class Vertices(NamedTuple):
    """u: (V, k) slice coordinates relative to the window's centre.

    error: (V,) the exact coordinates differ from u by at most this, each.
    window: (V,). stage, entry, tail, head: (V,) the zero of this switching value on the segment
    from vertex tail to vertex head; stage is CORNER for the corners of a window, which are exact.
    line: (V,) a switching value, numbered through all stages, that vanishes there too; -1: none
    known.
    """

    u: np.ndarray
    error: np.ndarray
    window: np.ndarray
    stage: np.ndarray
    entry: np.ndarray
    tail: np.ndarray
    head: np.ndarray
    line: np.ndarray

    @property
    def size(self) -> int:
        return len(self.error)

    def rows(self, index: Any) -> Vertices:
        if isinstance(index, slice):
            return Vertices(*(column[index] for column in self))
        index = np.asarray(index)
        if index.dtype == bool:  # ``take``, which is faster, reads a mask as numbers
            index = np.flatnonzero(index)
        return Vertices(*(column.take(index, axis=0) for column in self))

    def extended(self, *more: Vertices) -> Vertices:
        return Vertices(*map(np.concatenate, zip(self, *more, strict=True)))


class Frame(NamedTuple):
    """x = origin + basis (shift + u), per window; basis None: x = origin + u.

    axes: (k, W, d) the columns of basis, where each window has its own.
    base: (W,) largest |origin_j|. spread, reach: largest row sum and entry of |basis|.
    """

    origin: np.ndarray
    basis: np.ndarray | None
    axes: Any
    shift: np.ndarray | None
    base: np.ndarray
    spread: Any
    reach: Any


Key = int | tuple  # a vertex, or (stage, entry, key of the tail, key of the head)


@dataclasses.dataclass
class Ledger:
    """What the exact decisions of one call share: the function, the windows, what is known; pause:
    called between parts of long work, what it raises ends it."""

    net: CPAFunction
    windows: Window  # one leading axis
    vertices: Vertices
    frame: Frame = dataclasses.field(init=False)
    points: dict[Key, np.ndarray] = dataclasses.field(default_factory=dict)
    known: dict[tuple[Key, int], np.ndarray] = dataclasses.field(default_factory=dict)
    decisions: int = 0
    settled_exactly: int = 0
    pause: Callable[[], None] = lambda: None

    def __post_init__(self):
        self.frame = frame_of(self.windows)


def ledger_of(
    net: CPAFunction,
    windows: Window,
    window: np.ndarray,
    u: np.ndarray,
    exactly: dict[int, np.ndarray],
) -> Ledger:
    """A ledger of points u (V, k) in these windows (V,); of some by row the exact ones, which u
    only rounds."""
    none, error = np.full(len(u), CORNER), np.zeros(len(u))
    rows = list(exactly)
    error[rows] = 2 * U * np.abs(u[rows]).max(axis=1, initial=0.0) + np.finfo(np.float64).tiny
    every = Vertices(u, error, window, none, none, none, none, none)
    return Ledger(net, windows, every, points={**exactly})


def widest(rows: np.ndarray) -> np.ndarray:
    """(V,) the largest |coordinate| of each row of few coordinates."""
    return reduce(np.maximum, np.abs(rows).T)


def corners(windows: Window) -> Vertices:
    """The corners (-r, -r), (r, -r), (r, r), (-r, r) of every 2-d window, or ends -r, r."""
    radii = np.asarray(windows.radii(), np.float64)
    signs = {
        1: np.array([[-1.0], [1.0]]),
        2: np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]),
    }[windows.dimension]
    u = (signs * radii[:, None, :]).reshape(-1, windows.dimension)
    window = np.repeat(np.arange(len(radii)), len(signs))
    none = np.full(len(u), CORNER)
    return Vertices(u, np.zeros(len(u)), window, none, none, none, none, none)


def crossing(za: Any, zb: Any, error: Any) -> tuple[np.ndarray, np.ndarray]:
    """Where the segment between values of strictly opposite signs has its zero.

        t = |za| / (|za| + |zb|),    |t - t*| <= error / (|za*| + |zb*|) + rounding,

    from t - t* = (|zb| da - |za| db) / ((|za| + |zb|)(|za*| + |zb*|)).

    Args:
      za, zb: values at the two ends. error: bound on the error of both.

    Returns:
      t in [0, 1] and the bound on its error, at most 1.
    """
    za, zb = np.abs(za), np.abs(zb)
    total = za + zb
    with np.errstate(all="ignore"):
        t = za / total
        sure = total * (1 - 4 * U) - 2 * error
        bound = np.where(sure > 0, error / sure * (1 + 8 * U) + 8 * U, 1.0)
    lost = ~np.isfinite(t) | ~np.isfinite(bound)
    return np.where(lost, 0.5, t), np.where(lost, 1.0, np.minimum(bound, 1.0))


def between(vertices: Vertices, tail, head, t, error, stage: int, entry, line) -> Vertices:
    """New vertices at tail + t (head - tail), t known to within ``error``, both on ``line``."""
    a, b = vertices.u.take(tail, axis=0), vertices.u.take(head, axis=0)
    step = b - a
    size = widest(step)
    scale = np.maximum(widest(a), widest(b))
    ends = np.maximum(vertices.error[tail], vertices.error[head])
    bound = (ends + error * (size + 2 * ends) + 8 * U * scale) * (1 + 8 * U)
    bound = bound + np.finfo(np.float64).tiny
    return Vertices(
        a + t[:, None] * step,
        bound,
        vertices.window[tail],
        np.full(len(t), stage),
        np.asarray(entry),
        np.asarray(tail),
        np.asarray(head),
        np.asarray(line),
    )


def numbered(net: CPAFunction, stage: Any, entry: Any) -> np.ndarray:
    """Switching values numbered through all stages; -1 where there is none."""
    first = np.cumsum([0, *(s.size for s in net.stages)])
    return np.where(np.greater_equal(stage, 0), first[stage] + entry, CORNER)


def unnumbered(net: CPAFunction, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(stage, entry) of switching values numbered through all stages."""
    first = np.cumsum([0, *(s.size for s in net.stages)])
    stage = np.searchsorted(first, number, side="right") - 1
    return stage, number - first[stage]


def frame_of(windows: Window) -> Frame:
    """What turns slice coordinates into input points, in float64, computed once."""
    center = np.asarray(windows.center, np.float64)
    if windows.basis is None:
        return Frame(center, None, None, None, np.abs(center).max(axis=1), 0.0, 0.0)
    basis = np.asarray(windows.basis, np.float64)
    origin, shift = center, None
    if windows.anchor is not None:
        origin, shift = np.asarray(windows.anchor, np.float64), np.asarray(windows.shift)
    size = np.abs(basis)
    spread, reach = size.sum(axis=-1).max(axis=-1), size.max(axis=(-2, -1))
    axes = None if basis.ndim == 2 else np.ascontiguousarray(np.moveaxis(basis, -1, 0))
    return Frame(origin, basis, axes, shift, np.abs(origin).max(axis=1), spread, reach)


def lift(frame: Frame, vertices: Vertices) -> tuple[np.ndarray, np.ndarray]:
    """Input points (V, d) of vertices and the bound (V,) on the error of every coordinate."""
    u, w, error = vertices.u, vertices.window, vertices.error
    if frame.basis is None:
        x = frame.origin.take(w, axis=0) + u
        return x, (error + U * widest(x)) * (1 + 4 * U)
    if frame.shift is not None:
        u = frame.shift.take(w, axis=0) + u
        error = error + U * widest(u)
    if frame.basis.ndim == 2:
        x, spread, reach = u @ frame.basis.T, frame.spread, frame.reach
        x += frame.origin.take(w, axis=0)
    else:
        x = frame.origin.take(w, axis=0)
        for axis, coordinate in zip(frame.axes, u.T, strict=True):
            step = axis.take(w, axis=0)
            step *= coordinate[:, None]
            x += step
        spread, reach = frame.spread[w], frame.reach[w]
    size = frame.base[w] + reach * np.abs(u).sum(axis=1)
    rounding = exact.gamma(u.shape[1] + 2, np.float64) * size
    return x, (spread * error + rounding) * (1 + 8 * U) + np.finfo(np.float64).tiny


# Exactly -----------------------------------------------------------------------------------------


def _recipe(ledger: Ledger, key: Key) -> tuple[int, int, Key, Key]:
    if isinstance(key, tuple):
        return key
    v = ledger.vertices
    return int(v.stage[key]), int(v.entry[key]), int(v.tail[key]), int(v.head[key])


def _window(ledger: Ledger, key: Key) -> int:
    while isinstance(key, tuple):
        key = key[2]
    return int(ledger.vertices.window[key])


def point(ledger: Ledger, key: Key) -> np.ndarray:
    """(k,) the exact slice coordinates of a vertex."""
    if key not in ledger.points:
        stage, entry, tail, head = _recipe(ledger, key)
        if stage == CORNER:
            ledger.points[key] = exact.rationals(ledger.vertices.u[key])
        else:
            a, b = point(ledger, tail), point(ledger, head)
            za, zb = values(ledger, tail, stage)[entry], values(ledger, head, stage)[entry]
            ledger.points[key] = a + (b - a) * (za / (za - zb))
    return ledger.points[key]


def values(ledger: Ledger, key: Key, stage: int) -> np.ndarray:
    """The exact switching values of a stage at a vertex."""
    if (key, stage) not in ledger.known:
        if len(ledger.known) >= REMEMBERED:
            ledger.known.clear()
        x = input_point(ledger.windows, _window(ledger, key), point(ledger, key))
        x = x.reshape(ledger.net.input_shape)
        ledger.known[key, stage] = exact_values(ledger.net, x, stage)
    return ledger.known[key, stage]


def input_point(windows: Window, row: int, u: np.ndarray) -> np.ndarray:
    """The exact input point (d,) of exact slice coordinates (k,) in one window."""
    if windows.basis is None:
        return exact.rationals(windows.center[row]) + u
    basis = exact.rationals(windows.basis if windows.basis.ndim == 2 else windows.basis[row])
    if windows.anchor is None:
        return exact.rationals(windows.center[row]) + basis @ u
    return exact.rationals(windows.anchor[row]) + basis @ (
        exact.rationals(np.asarray(windows.shift)[row]) + u
    )

"""Vertices and volumes of the cells of one window of small dimension; float64 geometry.

A point lies in a closed cell iff none of its signs is opposite to the cell's. Where the subdivision
is simple (``complexes``) the cells around a vertex have all signs of its constraints, and the
hashes of their signs tell which they are. A cell's volume is that of the simplices of its pulling
triangulation: a face is the union of the pyramids over its facets from its first vertex.

Other cells come from Qhull, the intersection of half-spaces around the witness.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from typing import NamedTuple

import numpy as np
from scipy.linalg import qr
from scipy.spatial import ConvexHull, HalfspaceIntersection, QhullError

from jaxregions.engines.complexes import Complex, Tables, cells_around, tables
from jaxregions.engines.edges import ragged, starts_of
from jaxregions.engines.frontier import Status
from jaxregions.engines.leaves import Leaves
from jaxregions.engines.points import Ledger, U, values
from jaxregions.engines.search import Cell
from jaxregions.engines.vertices import subdivision

__all__ = ["MOST", "Polytopes", "polytopes", "unshaped"]

MOST = 6  # dimensions
_NEAR = 2.0**-30  # only an error bound depends on it
_ROWS = 1 << 21  # vertices of faces held at once


class Polytopes(NamedTuple):
    """vertices: (V, k). error: (V,) bound on their distance from the exact ones, per coordinate.
    start, corner: (F + 1,), (H,) the vertices of each cell. size: (F,) in slice coordinates."""

    vertices: np.ndarray
    error: np.ndarray
    start: np.ndarray
    corner: np.ndarray
    size: np.ndarray


def polytopes(found: Leaves, signs: list[np.ndarray]) -> Polytopes:
    """The cells of the last level, of one window; of more than ``MOST`` dimensions ``unshaped``.

    Args:
      signs: per stage (F, size) of these cells.

    Raises:
      Stopped: by the search's limits.
    """
    cells, search = found.levels[-1], found.search
    if search.radius.shape[1] > MOST:
        return unshaped(found)
    search.require_time()
    if signs and len(signs) == len(search.net.stages):
        stopped = lambda: search.status if search.out_of_time() else None  # noqa: E731
        ledger, skeleton, counts = subdivision(search.net, search.windows, stopped)
        search.require_time()
        if counts.status[0] == Status.COMPLETE:
            every = np.concatenate(signs, axis=1)
            return _around(ledger, skeleton, every, search.require_time)
    return _alone(found, cells)


def unshaped(found: Leaves) -> Polytopes:
    """The cells of the last level without vertices and volumes."""
    cells, k = len(found.levels[-1]), found.search.radius.shape[1]
    none, size = np.zeros(0, np.int64), np.full(cells, np.nan)
    return Polytopes(np.zeros((0, k)), np.zeros(0), np.zeros(cells + 1, np.int64), none, size)


# Simple subdivisions -----------------------------------------------------------------------------


def _around(
    ledger: Ledger, skeleton: Complex, signs: np.ndarray, pause: Callable[[], None]
) -> Polytopes:
    """Cells from the vertices around which they lie. pause: called between parts of the work."""
    k = skeleton.planes.shape[1]
    words = tables(2 * k + signs.shape[1])
    crossing = np.logical_and((signs > 0).any(axis=0), (signs < 0).any(axis=0))
    own = _hashes(words, signs, crossing, 2 * k)
    order = np.argsort(own)
    vertex, key, _ = cells_around(words, skeleton)
    key ^= _constant(ledger, words, skeleton, crossing)
    place = np.searchsorted(own[order], key).clip(max=len(own) - 1)
    cell = order[place]
    if (own[cell] != key).any():
        raise RuntimeError("a vertex of a cell that was not found")
    apex = np.flatnonzero(skeleton.planes[:, 0] < 0)
    for row in apex.tolist():
        pause()
        at = _exact_signs(ledger, int(skeleton.ids[row]))
        near = np.flatnonzero(((at == 0) | (at == signs) | ~crossing).all(axis=1))
        vertex, cell = np.append(vertex, np.full(len(near), row)), np.append(cell, near)
    order = np.lexsort((vertex, cell))
    corner = vertex[order]
    start = starts_of(np.bincount(cell, minlength=len(signs)))
    at = ledger.vertices.rows(skeleton.ids)
    size = _sizes(at.u, start, corner, skeleton.planes, pause)
    return Polytopes(at.u, at.error, start, corner, size)


def _hashes(words: Tables, signs: np.ndarray, crossing: np.ndarray, sides: int) -> np.ndarray:
    """(F,) of the signs of those switching values that take both in the window."""
    word = np.stack([words.minus, words.zero, words.plus])[:, sides:]
    key = np.zeros(len(signs), np.uint64)
    for column in np.flatnonzero(crossing):
        key ^= word[signs[:, column] + 1, column]
    return key


def _constant(ledger: Ledger, words: Tables, skeleton: Complex, crossing) -> np.uint64:
    """What the complex hashes beside: at the window's first corner, which lies in one cell."""
    corner = skeleton.rows(skeleton.ids == 0)
    _, key, _ = cells_around(words, corner)
    at = _exact_signs(ledger, 0)[None]
    return key[0] ^ _hashes(words, at, crossing, 2 * skeleton.planes.shape[1])[0]


def _exact_signs(ledger: Ledger, vertex: int) -> np.ndarray:
    stages = range(len(ledger.net.stages))
    known = np.concatenate([values(ledger, vertex, s) for s in stages])
    return np.array([(v > 0) - (v < 0) for v in known], np.int8)


def _sizes(
    u: np.ndarray,
    start: np.ndarray,
    corner: np.ndarray,
    planes: np.ndarray,
    pause: Callable[[], None],
) -> np.ndarray:
    """Volumes of cells; planes (V, k): the constraints at each vertex, -1: more than k."""
    k, size = u.shape[1], np.zeros(len(start) - 1)
    odd = np.logical_or.reduceat(planes[corner, 0] < 0, start[:-1])
    for cell in np.flatnonzero(odd).tolist():
        size[cell] = _hull(u[corner[start[cell] : start[cell + 1]]])
    rest = np.flatnonzero(~odd)
    each = max(1, len(corner) // len(size)) * factorial(k)
    step = max(1, _ROWS // (each * k))
    for low in range(0, len(rest), step):
        pause()
        some = rest[low : low + step]
        owner, place = ragged(np.diff(start)[some])
        owner_, simplex = _pulled(owner, corner[start[some][owner] + place], planes)
        edges = u[simplex[:, 1:]] - u[simplex[:, :1]]
        part = np.abs(np.linalg.det(edges)) / factorial(k)
        size[some] = np.bincount(owner_, part, minlength=len(some))
    return size


def _pulled(owner: np.ndarray, vertex: np.ndarray, planes: np.ndarray):
    """(S,) the cell and (S, k + 1) the vertices of the simplices of simple cells.

    Args:
      owner, vertex: (H,) the vertices of each cell, both ascending.
    """
    k, most = planes.shape[1], int(planes.max()) + 1
    cells, face = np.unique(owner, return_inverse=True)
    chosen = np.zeros((len(cells), 0), np.int64)
    for _ in range(k):
        first = vertex[np.flatnonzero(np.diff(face, prepend=-1))]
        chosen = np.column_stack([chosen, first])
        own = planes[vertex]
        off = (own[:, :, None] != planes[first][face][:, None]).all(axis=2)
        row, slot = np.nonzero(off)
        facet, inverse = np.unique(face[row] * most + own[row, slot], return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        face, vertex = inverse[order], vertex[row][order]
        cells, chosen = cells[facet // most], chosen[facet // most]
    return cells, np.column_stack([chosen, vertex])


# Any cells ---------------------------------------------------------------------------------------


def _alone(found: Leaves, cells: list[Cell]) -> Polytopes:
    """Every cell with vertices of its own; none where Qhull gives up."""
    radius = found.search.radius[0]
    k, every = len(radius), []
    side = np.concatenate([-np.eye(k), np.eye(k)])
    for cell in cells:
        found.search.require_time()
        slope = np.concatenate([cell.slope, side])
        value = np.append(cell.value, np.ones(2 * k))
        error = np.append(cell.error, np.zeros(2 * k))
        start = cell.u / radius if np.isfinite(error).all() else np.full(k, np.nan)
        u, through, size = _intersected(slope, value, start)
        bound = _distances(slope[through], value[through], error[through], u)
        every.append((u * radius, bound * radius.max(), len(u), size * radius.prod()))
    u, bound, count, size = zip(*every, strict=True)
    u, bound = np.concatenate(u), np.concatenate(bound)
    return Polytopes(u, bound, starts_of(np.array(count)), np.arange(len(u)), np.array(size))


def _intersected(slope: np.ndarray, value: np.ndarray, inside: np.ndarray):
    """Vertices (V, k) of {slope u + value >= 0}, k rows (V, k) through each, and the volume."""
    k = len(inside)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # what is too thin is refused
            found = HalfspaceIntersection(np.column_stack([-slope, -value]), inside)
        hull = ConvexHull(found.intersections)
    except (QhullError, ValueError):
        return np.zeros((0, k)), np.zeros((0, k), np.int64), np.nan
    u = found.intersections[hull.vertices]
    through = np.array([_independent(slope, np.abs(slope @ v + value)) for v in u])
    return u, through, hull.volume


def _independent(slope: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """k of the nearest rows that are far from dependent."""
    k = slope.shape[1]
    near = np.flatnonzero(distance <= max(_NEAR, np.partition(distance, k - 1)[k - 1]))
    *_, order = qr(slope[near].T, mode="r", pivoting=True)
    return near[order[:k]]


def _distances(slope: np.ndarray, value: np.ndarray, error: np.ndarray, u: np.ndarray):
    """(V,) bounds |u - v|_inf to the common point v of k rows, with R near their inverse:

    |R| (|slope u + value| + error) / (1 - |1 - R slope| - |R| error).
    """
    k = u.shape[1]
    inverse = np.linalg.pinv(slope)
    size = np.abs(inverse)
    z = np.matmul(slope, u[..., None])[..., 0] + value
    reach = np.matmul(np.abs(slope), np.abs(u)[..., None])[..., 0] + np.abs(value)
    miss = np.abs(z) + error + 2 * (k + 2) * U * reach
    off = np.abs(np.eye(k) - np.matmul(inverse, slope)).sum(axis=2).max(axis=1, initial=0.0)
    off += np.matmul(size, error[..., None])[..., 0].max(axis=1, initial=0.0)
    off += 4 * k * U * size.sum(axis=2).max(axis=1, initial=0.0)
    away = np.matmul(size, miss[..., None])[..., 0].max(axis=1, initial=0.0)
    with np.errstate(all="ignore"):
        return np.where(off < 1, away / (1 - off), np.inf) * (1 + 8 * k * U)


def _hull(points: np.ndarray) -> float:
    try:
        return float(ConvexHull(points).volume)
    except QhullError:
        return np.nan

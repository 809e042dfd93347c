"""Where the affine maps of two neighbours agree, in windows of any dimension.

Both maps are the same on the facet, so they agree iff their slopes along one axis do that crosses
it. A slope is a difference quotient between two points of the closed cell.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxregions import exact
from jaxregions.engines.affine import outputs_at, signed_sums
from jaxregions.engines.enclosures import exact_spans
from jaxregions.engines.facets import Facets
from jaxregions.engines.points import Ledger, U
from jaxregions.engines.search import Cell

__all__ = ["agreeing_maps", "put_exact_maps", "without_floats"]


def agreeing_maps(
    inner: Ledger,
    cells: list[Cell],
    facets: Facets,
    known: np.ndarray,
    pause: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """(G,) whether the affine maps on both sides of a facet agree exactly.

    Args:
      inner: of the cells' witness points. cells: themselves.
      known: (G,) facets where they are known to agree.
      pause: called between parts of the work; what it raises ends it.
    """
    k = inner.vertices.u.shape[1]
    slope, error = _enclosed(inner, np.array([c.step for c in cells]).reshape(-1, k), pause)
    error[[c.spans is not None for c in cells]] = np.inf
    left, right = facets.left, facets.right
    with np.errstate(all="ignore"):
        wide = (error[left] + error[right]) * (1 + 8 * U)
        apart = (np.abs(slope[left] - slope[right]) > wide).any(axis=1)
    open_ = np.flatnonzero(~known & ~apart)
    inner.decisions += len(known)
    inner.settled_exactly += len(open_)
    values: dict[tuple[int, int], np.ndarray] = {}

    def spans(cell: int) -> tuple[np.ndarray, np.ndarray]:
        c = cells[cell]
        return c.spans or exact_spans(c.u, c.step)

    def outputs(cell: int, axis: int) -> np.ndarray:
        if (cell, axis) not in values:
            start, step = spans(cell)
            at = start.copy()
            if axis >= 0:
                at[axis] = at[axis] + step[axis]
            values[cell, axis] = outputs_at(inner, cells[cell].window, at)
        return values[cell, axis]

    def along(cell: int, axis: int) -> np.ndarray:
        return (outputs(cell, axis) - outputs(cell, -1)) / spans(cell)[1][axis]

    same = known.copy()
    for facet in open_.tolist():
        pause()
        a, b, axis = (int(c[facet]) for c in (left, right, facets.axis))
        axes = range(k) if axis < 0 else (axis,)
        pairs = (zip(along(a, j), along(b, j), strict=True) for j in axes)
        same[facet] = all(p == q for pair in pairs for p, q in pair)
    return same


def without_floats(cell: Cell | None) -> bool:
    """Whether no float is known in a cell, or in one of those that it came from."""
    while cell is not None and cell.spans is None:
        cell = cell.parent
    return cell is not None


def put_exact_maps(
    inner: Ledger, cells: list[Cell], wanted: np.ndarray, slope: np.ndarray, shift: np.ndarray
) -> None:
    """The maps of some cells (F,) into (F, m, k), (F, m), made in rationals and rounded."""
    for i in np.flatnonzero(wanted).tolist():
        cell = cells[i]
        start, step = cell.spans or exact_spans(cell.u, cell.step)
        level = first = outputs_at(inner, cell.window, start)
        for axis, length in enumerate(step):
            at = start.copy()
            at[axis] = at[axis] + length
            rise = (outputs_at(inner, cell.window, at) - first) / length
            level = level - rise * start[axis]
            slope[i, :, axis] = [exact.rounded(x) for x in rise]
        shift[i] = [exact.rounded(x) for x in level]


def _enclosed(
    inner: Ledger, step: np.ndarray, pause: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (F, k) of one signed sum of the outputs, and their error bounds."""
    u = inner.vertices.u
    value, bound = signed_sums(inner, u)
    slope, error = np.empty(u.shape), np.empty(u.shape)
    for axis in range(u.shape[1]):
        pause()
        at = u.copy()
        at[:, axis] += step[:, axis]
        z, spread = signed_sums(inner, at)
        spread = spread + bound + 2 * U * (np.abs(z) + np.abs(value))
        with np.errstate(all="ignore"):
            slope[:, axis] = (z - value) / step[:, axis]
            error[:, axis] = spread / np.abs(step[:, axis]) * (1 + 8 * U)
        error[:, axis] += 8 * U * np.abs(slope[:, axis]) + np.finfo(np.float64).tiny
    return slope, error

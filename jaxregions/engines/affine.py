"""Where the affine maps of two neighbours are one and the same.

On a cell the map is known from k + 1 points of it: the witness and, for k of the corners, the
middle between the two. Maps of which one fixed sum of the outputs has slopes with disjoint
enclosures differ; those agree of which no change of pieces reaches the outputs; the others are
compared in rationals, output by output.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact
from jaxregions.engines.maps import SomeMaps
from jaxregions.engines.points import Ledger, U, input_point, point
from jaxregions.engines.records import Cells
from jaxregions.engines.steps import in_steps, lifted
from jaxregions.tracing import (
    bounded_outputs,
    changed_outputs,
    compiled,
    exact_outputs,
    pieces_of,
    prepare,
)

__all__ = ["exact_maps", "outputs_at", "same_maps", "signed_sums"]

FEW = 64  # facets that are not worth compiling for


def _rows_sums(prepared: Any, x: Any, error: Any):
    """sum_i (+-1) f_i at points, with error bounds; what differs in one sum differs."""

    def one(point, e):
        value, bound = (
            jnp.concatenate([jnp.ravel(leaf[i]) for leaf in bounded_outputs(prepared, point, e)])
            for i in range(2)
        )
        weights = np.where(np.random.default_rng(0).random(value.size) < 0.5, -1.0, 1.0)
        slack = exact.gamma(value.size + 2, np.float64)
        bound = (jnp.sum(bound) + slack * jnp.sum(jnp.abs(value))) * (1 + 2 * slack)
        return jnp.dot(weights, value), bound

    return jax.vmap(one)(x.reshape(-1, *prepared.net.input_shape), error)


def signed_sums(inner: Ledger, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A signed sum of the outputs (F,) at float64 points and the bounds on its error."""
    net = inner.net
    at = inner.vertices._replace(u=u, error=np.zeros(len(u)))
    with jax.enable_x64(True):
        prepared = prepare(net)
        step = partial(compiled(_rows_sums, prepared.structure), prepared)
        value, bound = in_steps(
            step, len(u), lambda part: lifted(inner, at, part), pause=inner.pause
        )
    return value, bound


def same_maps(ledger: Ledger, inner: Ledger, cells: Cells, known: np.ndarray) -> np.ndarray:
    """(G,) whether the affine maps on both sides of a facet agree exactly.

    Args:
      ledger: of the cells' vertices. inner: of their witness points.
      known: (G,) facets where they are known to agree.
    """
    points = _points(ledger, cells)
    slope, error = _enclosed_slopes(inner, points)
    error[~cells.inside] = np.inf
    left, right = cells.left, cells.right
    apart = np.abs(slope[left] - slope[right]) > (error[left] + error[right]) * (1 + 8 * U)
    open_ = np.flatnonzero(~known & ~apart.any(axis=1))
    unchanged = open_[:0]
    if len(open_) > FEW:
        sound = open_[cells.inside[left[open_]] & cells.inside[right[open_]]]
        unchanged = sound[~_changed(inner, left[sound], right[sound])]
        open_ = np.setdiff1d(open_, unchanged)
    ledger.decisions += len(known)
    ledger.settled_exactly += len(open_)
    found: dict[int, np.ndarray] = {}

    def exact_slope(cell: int) -> np.ndarray:
        if cell not in found:
            found[cell] = _exact_slope(ledger, inner, cells, cell, [p[cell] for p in points])
        return found[cell]

    same = known.copy()
    same[unchanged] = True
    for facet in open_.tolist():
        inner.pause()
        a, b = exact_slope(int(left[facet])), exact_slope(int(right[facet]))
        same[facet] = all(p == q for p, q in zip(a.ravel(), b.ravel(), strict=True))
    return same


def _rows_changed(prepared: Any, pieces: Any, x: Any, error: Any, other: Any, other_error: Any):
    def one(*ends):
        return changed_outputs(prepared, pieces, ends[:2], ends[2:])

    shape = (-1, *prepared.net.input_shape)
    return jax.vmap(one)(x.reshape(shape), error, other.reshape(shape), other_error)


def _changed(inner: Ledger, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether some change of pieces between two cells may reach the outputs."""
    if not len(left):
        return np.zeros(0, bool)
    net, ends = inner.net, [inner.vertices.rows(side) for side in (left, right)]
    with jax.enable_x64(True):
        prepared = prepare(net)
        step = partial(compiled(_rows_changed, prepared.structure), prepared, pieces_of(net))

        def inputs(part):
            return (*lifted(inner, ends[0], part), *lifted(inner, ends[1], part))

        (changed,) = in_steps(lambda *rows: (step(*rows),), len(left), inputs, pause=inner.pause)
    return changed


def _points(ledger: Ledger, cells: Cells) -> list[np.ndarray]:
    """The witness of every cell, and the middles between it and ``_spanning`` corners."""
    at = (ledger.vertices.u.take(corner, axis=0) for corner in _spanning(ledger, cells))
    return [cells.witness, *((cells.witness + u) / 2 for u in at)]


def _spanning(ledger: Ledger, cells: Cells) -> list[np.ndarray]:
    """For every cell k of its corners that are far from one line with the witness."""
    first = cells.corner[cells.start[:-1]]
    if cells.witness.shape[1] == 1:
        return [first]
    u, face = ledger.vertices.u, np.repeat(np.arange(len(first)), np.diff(cells.start))
    one = (u.take(first, axis=0) - cells.witness).take(face, axis=0)
    two = u.take(cells.corner, axis=0) - cells.witness.take(face, axis=0)
    with np.errstate(all="ignore"):
        size = np.abs(one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0])
    size = np.where(np.isnan(size), 0.0, size)
    best = np.flatnonzero(size == np.maximum.reduceat(size, cells.start[:-1])[face])
    _, pick = np.unique(face[best], return_index=True)
    return [first, cells.corner[best[pick]]]


def _enclosed_slopes(inner: Ledger, points: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (F, k) of one signed sum of the outputs from k + 1 points, and their error bounds."""
    values, bounds = zip(*(signed_sums(inner, u) for u in points), strict=True)
    rise = [v - values[0] for v in values[1:]]
    spread = [
        b + bounds[0] + 2 * U * (np.abs(v) + np.abs(values[0]))
        for v, b in zip(values[1:], bounds[1:], strict=True)
    ]
    step = [u - points[0] for u in points[1:]]
    with np.errstate(all="ignore"):
        if len(step) == 1:
            (s,) = step
            slope, error = rise[0][..., None] / s, spread[0][..., None] / np.abs(s)
            return slope, error * (1 + 8 * U) + 8 * U * np.abs(slope)
        (p, q), size = step, [np.abs(s) for s in step]
        det = p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]
        terms = size[0][..., 0] * size[1][..., 1] + size[0][..., 1] * size[1][..., 0]
        lost = 16 * U * terms / np.abs(det)  # relative error of det, with that of the steps
        sound = lost < 0.25
        columns, errors = [], []
        for axis, turn in ((1, 1.0), (0, -1.0)):
            top = turn * (rise[0] * q[..., axis] - rise[1] * p[..., axis])
            reach = np.abs(rise[0]) * size[1][..., axis] + np.abs(rise[1]) * size[0][..., axis]
            slack = spread[0] * size[1][..., axis] + spread[1] * size[0][..., axis]
            columns.append(top / det)
            bound = 2 * (slack + 16 * U * reach) / np.abs(det) + 2 * lost * np.abs(columns[-1])
            errors.append(np.where(sound, bound, np.inf))
    return np.stack(columns, axis=-1), np.stack(errors, axis=-1)


def _exact_slope(ledger, inner, cells, cell: int, points) -> np.ndarray:
    """The exact slopes (k, m) of one cell's map along the differences of its points, solved."""
    if cells.inside[cell]:
        places = [exact.rationals(p) for p in points]
    else:  # floats may put all corners on one line
        centre = inner.points[cell]
        corner = cells.corner[cells.start[cell] : cells.start[cell + 1]].tolist()
        first, *others = (point(ledger, c) - centre for c in corner)
        rays = [first]
        if len(first) == 2:
            rays.append(next(o for o in others if first[0] * o[1] != first[1] * o[0]))
        places = [centre, *(centre + ray / 2 for ray in rays)]
    row = int(cells.window[cell])
    values = [outputs_at(inner, row, p) for p in places]
    matrix = np.stack([p - places[0] for p in places[1:]])
    rise = np.stack([v - values[0] for v in values[1:]])
    return np.stack([exact.solve(matrix, column) for column in rise.T])


def exact_maps(ledger: Ledger, inner: Ledger, cells: Cells, wanted: np.ndarray) -> SomeMaps:
    """The maps of some cells (n,), in order, made in rationals and rounded."""
    points = _points(ledger, cells)
    slopes, shifts = [], []
    for cell in wanted.tolist():
        inner.pause()
        slope = _exact_slope(ledger, inner, cells, cell, [p[cell] for p in points])
        centre = point(inner, cell)
        shift = outputs_at(inner, int(cells.window[cell]), centre) - slope @ centre
        slopes.append([[exact.rounded(x) for x in row] for row in slope])
        shifts.append([exact.rounded(x) for x in shift])
    return SomeMaps(wanted, np.array(slopes), np.array(shifts))


def outputs_at(inner: Ledger, row: int, u: np.ndarray) -> np.ndarray:
    x = input_point(inner.windows, row, u).reshape(inner.net.input_shape)
    return np.concatenate([leaf.ravel() for leaf in exact_outputs(inner.net, x)])

"""Does a hyperplane that bounds a convex cell hold a facet of it? Many such questions at once.

It does iff all other rows of the cell are positive somewhere on it, inside the window. Such a point
is looked for on a segment that crosses the hyperplane, then by a linear program in one dimension
less; floats are checked with rigorous bounds, what they leave open is decided in rationals.

Rows and coordinates as in ``signtree``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions import exact
from jaxregions.engines.farkas import decide
from jaxregions.engines.margins import Margins, solve_margins
from jaxregions.engines.programs import MarginProgram
from jaxregions.engines.search import Cell, Search, exact_row

__all__ = ["touching"]

_ENTRIES = 1 << 20  # of rows gathered together
_ROUNDING = 1 + 2.0**-40
_FEW = 32  # variables, up to which programs are solved as arrays


def touching(
    search: Search, cells: list[Cell], plane: np.ndarray, beyond: list[Cell]
) -> np.ndarray:
    """(T,) whether the rows ``plane`` (T,) of these cells hold facets of them.

    Args:
      beyond: cells on the other sides, whose witnesses the segments end at.

    Raises:
      Stopped: by the search's limits.
    """
    out = np.zeros(len(cells), bool)
    if not cells:
        return out
    k = search.radius.shape[1]
    step = max(1, _ENTRIES // ((max(len(c.value) for c in cells) + 2) * k))
    for low in range(0, len(cells), step):
        search.require_time()
        part = slice(low, low + step)
        out[part] = _touching(search, cells[part], plane[part], beyond[part])
    return out


def _touching(search: Search, cells: list[Cell], plane: np.ndarray, beyond: list[Cell]):
    table = Table.of(cells, plane)
    start, end = (
        np.array([c.u / search.radius[c.window] for c in some]) for some in (cells, beyond)
    )
    good = _holds(table, _crossing(table, start, end))
    left = np.flatnonzero(~good)
    if len(left) and start.shape[1] > 1:
        search.programs += len(left)
        good[left], known = _solved(table.rows(left))
        left = left[~known]
    for i in left.tolist():
        search.require_time()
        search.settled_exactly += 1
        good[i] = _exactly(search, cells[i], int(plane[i]))
    return good


class Table(NamedTuple):
    """Rows of cells, filled up with rows that always hold, and one of each on which to look.

    slope, value, error: (T, m, ...). plane, axis: (T,) its number, and the axis along which its
    slope is largest.
    """

    slope: np.ndarray
    value: np.ndarray
    error: np.ndarray
    plane: np.ndarray
    axis: np.ndarray

    @staticmethod
    def of(cells: list[Cell], plane: np.ndarray) -> Table:
        count, most, k = len(cells), max(len(c.value) for c in cells), len(cells[0].u)
        slope, value = np.zeros((count, most, k)), np.ones((count, most))
        error = np.zeros((count, most))
        for i, c in enumerate(cells):
            m = len(c.value)
            slope[i, :m], value[i, :m], error[i, :m] = c.slope, c.value, c.error
        axis = np.abs(slope[np.arange(count), plane]).argmax(axis=1)
        return Table(slope, value, error, plane, axis)

    def rows(self, index: np.ndarray) -> Table:
        return Table(*(column[index] for column in self))

    def on(self) -> tuple[np.ndarray, ...]:
        """(T, k), (T,), (T,) the row on which to look, and its slope along its axis (T,)."""
        here = np.arange(len(self.plane))
        slope = self.slope[here, self.plane]
        at = here, self.plane
        return slope, self.value[at], self.error[at], slope[here, self.axis]


def _crossing(table: Table, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Where the segments meet the planes."""
    slope, value, _, _ = table.on()
    a, b = ((slope * u).sum(axis=1) + value for u in (start, end))
    with np.errstate(all="ignore"):
        t = a / (a - b)
    return start + np.where(np.isfinite(t), t, 0.5)[:, None] * (end - start)


def _holds(table: Table, point: np.ndarray) -> np.ndarray:
    """Whether points are proven to be near one of the plane at which all other rows are positive.

    Along the axis the plane is at most (|z| + e) / (|a| - e) away, z its row at the point, e the
    row's error, a its slope along the axis.
    """
    here = np.arange(len(point))
    _, _, error, steep = table.on()
    z = np.matmul(table.slope, point[..., None])[..., 0] + table.value
    with np.errstate(all="ignore"):
        room = np.abs(steep) - error
        away = (np.abs(z[here, table.plane]) + error) / room * _ROUNDING
        along = np.abs(table.slope[here, :, table.axis])
        good = z > (table.error + away[:, None] * along) * _ROUNDING
        good[here, table.plane] = (room > 0) & np.isfinite(away)
        far = np.abs(point)
        far[here, table.axis] += away
        return good.all(axis=1) & (far < 1 - 2.0**-50).all(axis=1)


def _solved(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Whether the planes have such points, and whether that is proven."""
    count, k = table.slope.shape[0], table.slope.shape[2]
    here = np.arange(count)
    own, level, error, steep = table.on()
    others = np.arange(k - 1) + (np.arange(k - 1) >= table.axis[:, None])
    # On the plane the coordinate along the axis is ahead . (the others) + start.
    ahead = -np.take_along_axis(own, others, axis=1) / steep[:, None]
    start = -level / steep
    share = np.take_along_axis(table.slope, table.axis[:, None, None], axis=2)[..., 0]
    slope = np.take_along_axis(table.slope, others[:, None], axis=2)
    slope = slope + share[..., None] * ahead[:, None]
    value = table.value + share * start[:, None]
    slope[here, table.plane], value[here, table.plane] = 0.0, 1.0
    box = np.stack([-ahead, ahead], axis=1), np.stack([1 - start, 1 + start], axis=1)
    slope, value = (np.concatenate(pair, axis=1) for pair in zip((slope, value), box, strict=True))
    size = np.maximum(np.sqrt((slope**2).sum(axis=2)), np.finfo(np.float64).tiny)
    size = np.where(np.abs(value) > 8 * size, np.abs(value), size)
    found = _margins(slope / size[..., None], value / size)
    point = np.empty((count, k))
    np.put_along_axis(point, others, found.point, axis=1)
    point[here, table.axis] = (ahead * found.point).sum(axis=1) + start
    good = found.solved & (found.margin > 0) & _holds(table, point)
    weight = found.weight / size
    weight, sides = weight[:, :-2], weight[:, -2:]
    weight[here, table.plane] = 0.0
    combined = np.matmul(weight[:, None], table.slope)[:, 0]
    other = (sides[:, 0] - sides[:, 1] - combined[here, table.axis]) / steep
    highest = (weight * (table.value + 2 * table.error)).sum(axis=1) + other * level
    highest += 2 * np.abs(other) * error + np.abs(combined + other[:, None] * own).sum(axis=1)
    refuted = found.solved & (found.margin <= 0) & (highest <= 0) & (weight > 0).any(axis=1)
    return good, good | refuted


def _margins(slope: np.ndarray, value: np.ndarray) -> Margins:
    """As ``solve_margins``; programs of many variables one after the other."""
    if slope.shape[2] <= _FEW:
        return solve_margins(slope, value)
    count, rows, k = slope.shape
    out = Margins(
        np.zeros(count), np.zeros((count, k)), np.zeros((count, rows)), np.zeros(count, bool)
    )
    box, ones = np.concatenate([np.eye(k), -np.eye(k)]), np.ones(2 * k)
    for i in range(count):
        program = MarginProgram(np.concatenate([slope[i], box]), np.append(value[i], ones))
        answer = program.solve(list(range(rows + 2 * k)))
        if answer is not None:
            out.solved[i], out.margin[i] = True, answer.margin
            out.point[i], out.weight[i] = answer.point, answer.weight[:rows]
    return out


def _exactly(search: Search, cell: Cell, plane: int) -> bool:
    """The same in rationals: one coordinate eliminated."""
    names = cell.literal.tolist()
    slope, value = zip(*(exact_row(search, cell, *name) for name in names), strict=True)
    slope, value = np.stack(slope), np.array(value, object)
    radius = exact.rationals(search.radius[cell.window])
    axis = next(j for j, s in enumerate(slope[plane]) if s != 0)
    ahead, start = -slope[plane] / slope[plane, axis], -value[plane] / slope[plane, axis]
    share = slope[:, axis]
    slope, value = slope + np.multiply.outer(share, ahead), value + share * start
    rest = np.arange(len(radius)) != axis
    slope = np.concatenate([np.delete(slope, plane, axis=0), np.stack([ahead, -ahead])])
    ends = [radius[axis] + start, radius[axis] - start]
    value = np.concatenate([np.delete(value, plane), np.array(ends, object)])
    if not rest.any():
        return all(v > 0 for v in value)
    found = decide(slope[:, rest], value, radius[rest], search.require_time)
    return found.point is not None

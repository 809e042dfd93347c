"""Facets between the cells of windows of any dimension.

On a facet F of a cell P all values vanish whose maps on P are multiples of one that bounds P there,
and the others keep their signs. So the signs on F are known without looking for it,

    signs(F) = signs(P), with 0 for these values,

and two cells share a facet iff they name the same signs and these occur at a point. Then exactly
two cells name them. Of one stage's cells with one parent they do occur: the segment between two
points of the cells has such a point, since all values are affine on it. Otherwise a point is looked
for: on the segment, then by a linear program on the hyperplane, at last in rationals.

Rows and coordinates as in ``signtree``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions import exact
from jaxregions.engines.edges import ragged
from jaxregions.engines.farkas import decide
from jaxregions.engines.leaves import Leaves
from jaxregions.engines.margins import Margins, solve_margins
from jaxregions.engines.programs import MarginProgram
from jaxregions.engines.records import Cells
from jaxregions.engines.search import Cell, Search, exact_row, settled_rows
from jaxregions.engines.sides import SMALL_DIMENSION, Batch

__all__ = ["Facets", "facets"]

_ENTRIES = 1 << 20  # of rows gathered together
_PARALLEL = 2.0**-40  # rows at a smaller angle are compared in rationals
_ROUNDING = 1 + 2.0**-40
_SEED = 2**61 - 1


class Facets(NamedTuple):
    """left, right: (G,) the cells on both sides. stage, entry: (G,) a switching value that vanishes
    on the facet; axis: (G,) an axis that crosses it, -1: not known."""

    left: np.ndarray
    right: np.ndarray
    stage: np.ndarray
    entry: np.ndarray
    axis: np.ndarray

    def cells(self, found: Leaves) -> Cells:
        """The cells with these facets, without vertices."""
        cells, k = found.levels[-1], found.search.radius.shape[1]
        parent = found.parents[-1] if found.parents else np.zeros(len(cells), np.int64)
        none = np.zeros(0, np.int64)
        return Cells(
            np.array([c.window for c in cells], np.int64),
            parent,
            np.array([c.u for c in cells]).reshape(-1, k),
            np.ones(len(cells), bool),
            np.zeros(len(cells) + 1, np.int64),
            none,
            self.left,
            self.right,
            np.zeros((len(self.left), 0), np.int64),
            self.stage,
            self.entry,
        )


class Bounds(NamedTuple):
    """The rows that bound the last cells, cell after cell.

    owner, place: (R,) whose and which of its rows. literal: (R, 3). column: (R,) its switching
    value, numbered through all stages. twin_row, twin_column: (Z,) other switching values that
    vanish wherever the row does.
    """

    owner: np.ndarray
    place: np.ndarray
    literal: np.ndarray
    column: np.ndarray
    twin_row: np.ndarray
    twin_column: np.ndarray


def facets(found: Leaves, signs: list[np.ndarray]) -> Facets:
    """All facets between the cells of the last level.

    Args:
      signs: per stage (F, size) of these cells.

    Raises:
      RuntimeError: cells that contradict each other.
    """
    search, cells = found.search, found.levels[-1]
    every = np.concatenate([np.zeros((len(cells), 0), np.int8), *signs], axis=1)
    rows = _rows(found)
    if (every[rows.owner, rows.column] != rows.literal[:, 2]).any():
        raise RuntimeError("a cell's point contradicts the signs that bound the cell")
    keys = _keys(search, cells, every, rows)
    order = np.argsort(keys, kind="stable")
    begin = np.flatnonzero(np.append(True, keys[order][1:] != keys[order][:-1])[: len(order)])
    named = np.diff(np.append(begin, len(order)))
    begin, named = begin[named > 1], named[named > 1]
    left, right = order[begin], order[begin + 1]
    _compare(every, rows, left, right)
    shared = rows.literal[left, 0] == len(signs) - 1
    ask = np.flatnonzero(~shared)
    shared[ask] = _touching(search, cells, rows, left[ask], right[ask])
    if (named[shared] > 2).any():
        raise RuntimeError("a facet of more than two cells")
    left, right = left[shared], right[shared]
    axis = [_steepest(cells[p], r) for p, r in zip(rows.owner[left], rows.place[left], strict=True)]
    stage, entry = rows.literal[left, :2].T
    return Facets(rows.owner[left], rows.owner[right], stage, entry, np.array(axis, np.int64))


def _steepest(cell: Cell, row: int) -> int:
    size = np.abs(cell.slope[row])
    axis = int(size.argmax())
    return axis if size[axis] > cell.error[row] else -1


def _rows(found: Leaves) -> Bounds:
    search, cells = found.search, found.levels[-1]
    first = np.cumsum([0, *(s.size for s in search.net.stages)])
    owner, place = ragged(np.array([len(c.literal) for c in cells], np.int64))
    literal = np.concatenate([np.zeros((0, 3), np.int64), *(c.literal for c in cells)])
    column = first[literal[:, 0]] + literal[:, 1]
    rows, twins = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    ancestor = np.arange(len(cells))
    for level in reversed(range(len(found.parents))):
        ancestor = found.parents[level][ancestor]
        code, twin = _parallel(search, found.levels[level], first)
        own = ancestor[owner] * first[-1] + column
        low, high = np.searchsorted(code, own), np.searchsorted(code, own, side="right")
        row, step = ragged(high - low)
        rows.append(row)
        twins.append(twin[low[row] + step])
    return Bounds(owner, place, literal, column, np.concatenate(rows), np.concatenate(twins))


# Switching values that vanish together -----------------------------------------------------------


def _parallel(search: Search, cells: list[Cell], first: np.ndarray) -> tuple[np.ndarray, ...]:
    """Values of the cells' stage that are multiples of another value, or of one bounding the cell.

    Returns:
      code: cell * (number of values) + the other value, ascending; twin: the value of the stage.
    """
    code, twin = [], []
    size = search.net.stages[cells[0].stage].size if cells else 1
    most = max((len(c.value) for c in cells), default=0) + size
    step = max(1, _ENTRIES // (most * size + 1))
    for start in range(0, len(cells), step):
        some = cells[start : start + step]
        rows = [settled_rows(search, c) for c in some]
        batch = Batch.of(search, some, rows)
        zero = np.stack([r.zero for r in rows])
        for p, i, j in zip(*_suspects(batch, zero), strict=True):
            cell = some[p]
            own = (cell.stage, int(j), 1)
            other = (cell.stage, int(i) - batch.fixed, 1)
            if i < batch.fixed:
                other = (*batch.literal[p, i, :2].tolist(), 1)
            if _multiples(exact_row(search, cell, *own), exact_row(search, cell, *other)):
                code.append((start + int(p)) * int(first[-1]) + int(first[other[0]]) + other[1])
                twin.append(int(first[cell.stage]) + int(j))
            search.settled_exactly += 1
    order = np.argsort(np.array(code, np.int64), kind="stable")
    return np.array(code, np.int64)[order], np.array(twin, np.int64)[order]


def _suspects(batch: Batch, zero: np.ndarray) -> tuple[np.ndarray, ...]:
    """(cell, row, value of the stage) where floats do not exclude that one is a multiple of the
    other: rows of relative error e are multiples only at an angle of at most 2 (e + e')."""
    rows = np.concatenate([batch.slope, batch.value[..., None]], axis=2)
    length = np.linalg.norm(rows, axis=2)
    crosses = np.abs(batch.value) <= np.abs(batch.slope).sum(axis=2) + batch.error
    crosses[:, : batch.fixed] &= batch.literal[..., 2] != 0
    crosses[:, batch.fixed :] &= ~zero
    own = slice(batch.fixed, None)
    with np.errstate(all="ignore"):
        cosine = np.matmul(rows, np.swapaxes(rows[:, own], 1, 2)) / (
            length[:, :, None] * length[:, None, own]
        )
        loose = batch.error / length
        apart = 2 * (loose[:, :, None] + loose[:, None, own]) ** 2 + _PARALLEL
        near = ~(1 - np.abs(cosine) > apart)
    near &= crosses[:, :, None] & crosses[:, None, own]
    stage = np.arange(near.shape[2])
    near[:, batch.fixed + stage, stage] = False
    return np.nonzero(near)


def _multiples(a, b) -> bool:
    """Whether an exact row is a multiple of another; neither vanishes."""
    a, b = ([*slope, value] for slope, value in (a, b))
    at = next(i for i, x in enumerate(a) if x != 0)
    return all(x * b[at] == y * a[at] for x, y in zip(a, b, strict=True))


# Cells that name the same facet ------------------------------------------------------------------


def _keys(search: Search, cells: list[Cell], every: np.ndarray, rows: Bounds) -> np.ndarray:
    """(R,) hashes of the signs on the facet of each row."""
    rng = np.random.default_rng(_SEED)
    word = rng.integers(0, 2**64, (every.shape[1], 3), dtype=np.uint64)
    own = rng.integers(0, 2**64, len(search.radius), dtype=np.uint64)
    key = own[np.array([c.window for c in cells], np.int64)]
    for column in range(every.shape[1]):
        key ^= word[column, every[:, column] + 1]
    key = key[rows.owner]
    for row, column in (
        (np.arange(len(key)), rows.column),
        (rows.twin_row, rows.twin_column),
    ):
        sign = every[rows.owner[row], column]
        np.bitwise_xor.at(key, row, word[column, sign + 1] ^ word[column, 1])
    return key


def _compare(every: np.ndarray, rows: Bounds, left: np.ndarray, right: np.ndarray) -> None:
    """The signs behind equal hashes are equal."""
    order = np.argsort(rows.twin_row, kind="stable")
    sorted_rows, columns = rows.twin_row[order], rows.twin_column[order]

    def zeroed(row: np.ndarray) -> np.ndarray:
        signs = every[rows.owner[row]]
        signs[np.arange(len(row)), rows.column[row]] = 0
        low, high = (np.searchsorted(sorted_rows, row, side=s) for s in ("left", "right"))
        at, step = ragged(high - low)
        signs[at, columns[low[at] + step]] = 0
        return signs

    step = max(1, _ENTRIES // max(every.shape[1], 1))
    for start in range(0, len(left), step):
        part = slice(start, start + step)
        if (zeroed(left[part]) != zeroed(right[part])).any():
            raise RuntimeError("different facets with one hash")


# Is there a point? -------------------------------------------------------------------------------


def _touching(search: Search, cells: list[Cell], rows: Bounds, left, right) -> np.ndarray:
    """(T,) whether the rows ``left`` of their cells hold facets; ``right``: of the neighbours."""
    out = np.zeros(len(left), bool)
    if not len(left):
        return out
    k = search.radius.shape[1]
    most = max(len(cells[p].value) for p in rows.owner[left])
    step = max(1, _ENTRIES // ((most + 2) * k))
    for start in range(0, len(left), step):
        a, b = left[start : start + step], right[start : start + step]
        own, place = [cells[p] for p in rows.owner[a]], rows.place[a]
        table = Table.of(own, place)
        start_, end = (
            np.array([c.u / search.radius[c.window] for c in some])
            for some in (own, [cells[q] for q in rows.owner[b]])
        )
        good = _holds(table, _crossing(table, start_, end))
        left_open = np.flatnonzero(~good)
        if k > 1 and len(left_open):
            search.programs += len(left_open)
            good[left_open], known = _solved(table.rows(left_open))
            left_open = left_open[~known]
        for i in left_open.tolist():
            search.settled_exactly += 1
            good[i] = _exactly(search, own[i], int(place[i]))
        out[start : start + step] = good
    return out


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
    if slope.shape[2] <= SMALL_DIMENSION:
        return solve_margins(slope, value)
    count, rows, k = slope.shape
    out = Margins(
        np.zeros(count), np.zeros((count, k)), np.zeros((count, rows)), np.zeros(count, bool)
    )
    for i in range(count):
        answer = MarginProgram(slope[i], value[i]).solve(list(range(rows)))
        if answer is not None:
            out.solved[i], out.margin[i] = True, answer.margin
            out.point[i], out.weight[i] = answer.point, answer.weight
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
    return decide(slope[:, rest], value, radius[rest]).point is not None

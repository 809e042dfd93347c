"""Facets between the cells of windows of any dimension.

On a facet F of a cell P all values vanish whose maps on P are multiples of one that bounds P there,
and the others keep their signs. So the signs on F are known without looking for it,

    signs(F) = signs(P), with 0 for these values,

and two cells share a facet iff they name the same signs and these occur at a point. Then exactly
two cells name them. Of one stage's cells with one parent they do occur: the segment between two
points of the cells has such a point, since all values are affine on it. Otherwise ``touching``
looks for one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions.engines.edges import ragged
from jaxregions.engines.leaves import Leaves
from jaxregions.engines.records import Cells
from jaxregions.engines.search import Cell, Search, exact_row, settled_rows
from jaxregions.engines.sides import Batch
from jaxregions.engines.touching import touching

__all__ = ["Facets", "facets"]

_ENTRIES = 1 << 20  # of rows gathered together
_PARALLEL = 2.0**-40  # rows at a smaller angle are compared in rationals
_SEED = 2**61 - 1


class Facets(NamedTuple):
    """left, right: (G,) the cells on both sides. stage, entry: (G,) a switching value that vanishes
    on the facet; axis: (G,) an axis that crosses it, -1: not known."""

    left: np.ndarray
    right: np.ndarray
    stage: np.ndarray
    entry: np.ndarray
    axis: np.ndarray

    @staticmethod
    def none() -> Facets:
        return Facets(*np.zeros((5, 0), np.int64))

    def cells(self, found: Leaves) -> Cells:
        """The cells with these facets, without vertices."""
        cells, k = found.levels[-1], found.search.radius.shape[1]
        parent = found.parents[-1] if found.parents else np.zeros(len(cells), np.int64)
        none = np.zeros(0, np.int64)
        return Cells(
            np.array([c.window for c in cells], np.int64),
            parent,
            np.array([c.u for c in cells]).reshape(-1, k),
            np.array([c.spans is None for c in cells], bool),
            np.full(len(cells), np.nan),
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
      Stopped: by the search's limits.
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
    begin, named = (kept[named > 1] for kept in (begin, named))
    left, right = order[begin], order[begin + 1]
    _compare(every, rows, left, right)
    shared = rows.literal[left, 0] == len(signs) - 1
    ask = np.flatnonzero(~shared)
    own, other = ([cells[p] for p in rows.owner[side[ask]]] for side in (left, right))
    shared[ask] = touching(search, own, rows.place[left[ask]], other)
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
        search.require_time()
        some = cells[start : start + step]
        rows = [settled_rows(search, c) for c in some]
        batch = Batch.of(search, some, rows)
        zero = np.stack([r.zero for r in rows])
        for p, i, j in zip(*_suspects(batch, zero), strict=True):
            search.require_time()
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

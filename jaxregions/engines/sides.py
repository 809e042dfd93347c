"""Is there a point of a node with this sign of that switching value? Many such tests at once."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxregions import exact
from jaxregions.engines.enclosures import Rows
from jaxregions.engines.farkas import decide
from jaxregions.engines.longsteps import FAR, Bases, solve_wide
from jaxregions.engines.margins import Margins, solve_margins
from jaxregions.engines.programs import MarginProgram
from jaxregions.engines.search import Cell, Search, exact_row

__all__ = [
    "FOUND",
    "REFUTED",
    "SMALL_DIMENSION",
    "Answers",
    "Batch",
    "Parts",
    "centred",
    "exact_point",
    "exact_steps",
    "tested",
]

FOUND, REFUTED, OPEN = range(3)  # the last only until it is decided in rationals
_TINY = np.finfo(np.float64).tiny
SMALL_DIMENSION = 8  # up to here bases of k + 1 rows, afresh; above, of a variable a row, inherited
_ENTRIES = 1 << 19  # of rows gathered together
AT_ONCE = 2  # chunks of programs
POOL = 32  # points of a cell that are remembered


class Parts(NamedTuple):
    """Parts of cells, each given by some rows of its cell's table.

    parent (N,) in the batch; row, sign (N, R): which rows and their signs, sign 0: none, these come
    last; size (N,): how many; bases: to start from, (N, 0) in few dimensions.
    """

    parent: np.ndarray
    row: np.ndarray
    sign: np.ndarray
    size: np.ndarray
    bases: Bases

    def rows(self, index: Any) -> Parts:
        parent, row, sign, size, bases = self
        columns = parent[index], row[index], sign[index], size[index]
        return Parts(*columns, bases.rows(index))

    def of_width(self, width: int) -> Parts:
        """The same with room for so many rows."""
        more = ((0, 0), (0, max(0, width - self.row.shape[1])))
        row, sign = (np.pad(c[:, :width], more) for c in (self.row, self.sign))
        bases = self.bases.of_width(width) if self.bases.bound.shape[1] else self.bases
        return Parts(self.parent, row, sign, self.size, bases)

    def cut(self, row: Any, sign: Any) -> Parts:
        """With one row more each; there is room for it."""
        rows, signs, at = self.row.copy(), self.sign.copy(), np.arange(len(self.size))
        rows[at, self.size], signs[at, self.size] = row, sign
        return Parts(self.parent, rows, signs, self.size + 1, self.bases)

    @staticmethod
    def joined(parts: list[Parts]) -> Parts:
        """One after the other; of one width."""
        parent, row, sign, size = map(np.concatenate, zip(*(p[:4] for p in parts), strict=True))
        bases = Bases(*map(np.concatenate, zip(*(p.bases for p in parts), strict=True)))
        return Parts(parent, row, sign, size, bases)


class Answers(NamedTuple):
    """kind (T,); point (T, k) where FOUND, NaN: one that floats cannot tell; proof (T,) where
    REFUTED; margin (T,); bases."""

    kind: np.ndarray
    point: np.ndarray
    proof: np.ndarray
    margin: np.ndarray
    bases: Bases


@dataclasses.dataclass(eq=False)
class Batch:
    """Cells of one stage with their rows: ``fixed`` rows that bound the cell, filled up with rows
    that always hold, and then those of the stage.

    slope, value, error, scale: (P, fixed + n, ...). literal: (P, fixed, 3). margin: (P, n) of the
    tests at the top. known: by cell, proofs that were made in rationals. whole: the cells.
    pool (P, J, k): points that were found in each cell. sees (2, P, n): which of them, as bits, are
    proven to have a switching value positive (negative).
    """

    cells: list[Cell]
    fixed: int
    slope: np.ndarray
    value: np.ndarray
    error: np.ndarray
    scale: np.ndarray
    literal: np.ndarray
    margin: np.ndarray
    known: dict[int, list[tuple[frozenset, Any]]]
    whole: Parts
    pool: np.ndarray
    sees: np.ndarray

    @staticmethod
    def of(search: Search, cells: list[Cell], rows: list[Rows]) -> Batch:
        count, k = len(cells), len(cells[0].u)
        fixed, size = max(len(c.value) for c in cells), len(rows[0].value)
        slope, value = np.zeros((count, fixed + size, k)), np.full((count, fixed + size), FAR)
        error, scale = np.zeros(value.shape), np.ones(value.shape)
        literal = np.zeros((count, fixed, 3), np.int64)
        wide = k > SMALL_DIMENSION
        bases = Bases.first(count, fixed * wide, k * wide)
        for p, c in enumerate(cells):
            m = len(c.value)
            slope[p, :m], value[p, :m], error[p, :m] = c.slope, c.value, c.error
            scale[p, :m], literal[p, :m] = c.scale, c.literal
            if wide and c.bases is not None:
                bases.basic[p, :m], bases.bound[p] = c.bases
        own = slice(fixed, None)
        radius = np.stack([search.radius[c.window] for c in cells])[:, None]
        columns = (np.stack(column) for column in zip(*(r[:3] for r in rows), strict=True))
        slopes, values, errors, length = _scaled(radius, *columns)
        slope[:, own], value[:, own], error[:, own] = slopes, values, errors
        scale[:, own] = length
        margin = np.zeros((count, size))
        many = np.array([len(c.value) for c in cells])
        row = np.tile(np.arange(fixed), (count, 1))
        sign = (row < many[:, None]).astype(np.int8)
        if wide and fixed:
            bases = bases.refreshed(slope[:, :fixed])
        whole = Parts(np.arange(count), row * sign, sign, many, bases)
        none = np.zeros((count, 0, k)), np.zeros((2, count, size), np.uint64)
        tables = slope, value, error, scale, literal, margin
        return Batch(cells, fixed, *tables, {}, whole, *none)

    def side(self, parent: np.ndarray, unit: np.ndarray, point: np.ndarray) -> np.ndarray:
        """The proven sign of switching values at points of cells; 0: not proven."""
        at = parent, self.fixed + unit
        z = (self.slope[at] * point).sum(axis=-1) + self.value[at]
        return (z > self.error[at]).astype(np.int64) - (z < -self.error[at])

    def remember(self, parent: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Points that were found in cells; (P,) all those of each, as bits."""
        told = np.isfinite(point).all(axis=1)
        parent, point = parent[told], point[told]
        count = np.bincount(parent, minlength=len(self.cells))
        order = np.argsort(parent, kind="stable")
        place = np.arange(len(parent)) - np.repeat(np.cumsum(count) - count, count)
        few = place < POOL
        parent, point, place = parent[order][few], point[order][few], place[few]
        shape = len(self.cells), int(count.max(initial=0).clip(max=POOL)), point.shape[1]
        self.pool = np.zeros(shape)
        self.pool[parent, place] = point
        own, bit = slice(self.fixed, None), np.uint64(1) << place.astype(np.uint64)
        here = np.zeros(len(self.cells), np.uint64)
        np.bitwise_or.at(here, parent, bit)
        bits = np.uint64(1) << np.arange(shape[1], dtype=np.uint64)
        z = np.matmul(self.slope[:, own], self.pool.swapaxes(1, 2)) + self.value[:, own, None]
        for seen, side in zip(self.sees, (z, -z), strict=True):
            seen[:] = ((side > self.error[:, own, None]) * bits).sum(axis=2, dtype=np.uint64)
        return here

    def rows(self, parts: Parts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """slope (T, R, k), value, error (T, R)."""
        at, none = (parts.parent[:, None], parts.row), parts.sign == 0
        slope = self.slope[at]
        slope *= parts.sign[..., None]
        value = np.where(none, FAR, self.value[at] * parts.sign)
        return slope, value, np.where(none, 0.0, self.error[at])

    def named(self, parts: Parts) -> np.ndarray:
        """(T, R, 3) stage, entry and sign of the same rows; sign 0: none."""
        own = parts.row >= self.fixed
        before = np.where(own, 0, parts.row)
        names = np.zeros((*own.shape, 3), np.int64)
        if self.fixed:
            names[:] = self.literal[parts.parent[:, None], before]
        stage = np.full(own.shape, self.cells[0].stage)
        now = np.stack([stage, parts.row - self.fixed, parts.sign.astype(np.int64)], axis=-1)
        names = np.where(own[..., None], now, names)
        names[parts.sign == 0] = 0
        return names


def _scaled(radius, slope, value, error) -> tuple[np.ndarray, ...]:
    """Rows in units of the radii, divided by their lengths; and these. Where that overflows, a row
    of which nothing is known."""
    with np.errstate(all="ignore"):
        slope = slope * radius
        size = np.abs(slope).max(axis=-1)
        length = np.sqrt(((slope / np.where(size > 0, size, 1.0)[..., None]) ** 2).sum(axis=-1))
        length = length * size
        length = np.where(length > _TINY, length, np.abs(value))
        length = np.where(length > _TINY, length, 1.0)
        lost = ~(np.isfinite(length) & np.isfinite(value) & np.isfinite(error))
        length[lost] = 1.0
        slope, value, error = slope / length[..., None], value / length, error / length
        lost |= ~(np.isfinite(slope).all(axis=-1) & np.isfinite(value) & np.isfinite(error))
    slope[lost], value[lost], error[lost], length[lost] = 0.0, 0.0, np.inf, 1.0
    return slope, value, error, length


def tested(search: Search, batch: Batch, tests: Parts) -> Answers:
    """Whether these parts are empty, each proven.

    Raises:
      Stopped: by the search's limits.
    """
    count, k = len(tests.parent), batch.slope.shape[2]
    bases = Bases(*(column.copy() for column in tests.bases))
    out = Answers(
        np.full(count, OPEN), np.zeros((count, k)), np.full(count, -1), np.zeros(count), bases
    )
    search.programs += count
    chunks = _chunks(tests.size, k)
    run = partial(_proposed, search, batch, tests)
    if len(chunks) > 1 and AT_ONCE > 1:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(run, chunks))
    else:
        found = map(run, chunks)
    for chunk, (kind, margins, bases) in zip(chunks, found, strict=True):
        out.kind[chunk], out.margin[chunk] = kind, margins.margin
        out.point[chunk] = margins.point
        if bases.bound.shape[1]:
            wide = bases.of_width(tests.row.shape[1])
            for old, new in zip(out.bases, wide, strict=True):
                old[chunk] = new
        refuted = kind == REFUTED
        if search.recorder is not None and refuted.any():
            out.proof[chunk[refuted]] = _recorded(
                search, batch, tests.rows(chunk[refuted]), margins.weight[refuted]
            )
    for i in np.flatnonzero(out.kind == OPEN).tolist():
        _settle(search, batch, tests, i, out)
    return out


def _chunks(size: np.ndarray, k: int) -> list[np.ndarray]:
    """Tests that are solved together, those with many rows first."""
    order, chunks, start = np.argsort(-size, kind="stable"), [], 0
    while start < len(order):
        step = max(1, _ENTRIES // (int(size[order[start]]) * k))
        chunks.append(order[start : start + step])
        start += step
    return chunks


@np.errstate(all="ignore")  # of rows too large for floats nothing is proven here
def _proposed(
    search: Search, batch: Batch, tests: Parts, chunk: np.ndarray
) -> tuple[np.ndarray, Margins, Bases]:
    """What is proven of some tests in floats, by which points or multipliers; bases."""
    search.require_time()
    part = tests.rows(chunk).of_width(int(tests.size[chunk[0]]))
    slope, value, error = batch.rows(part)
    if slope.shape[2] <= SMALL_DIMENSION:
        found = solve_margins(slope, value)
        return _proven(slope, value, error, found), found, part.bases
    found, bases = solve_wide(slope, value, part.bases)
    _draw_in(slope, value, found.point)
    kind = _proven(slope, value, error, found)
    for i in np.flatnonzero(kind == OPEN).tolist():  # HiGHS, before rationals
        answer = MarginProgram(slope[i], value[i]).solve(list(range(slope.shape[1])))
        if answer is not None:
            for column, own in zip(found, (*answer, True), strict=True):
                column[i] = own
            one = slice(i, i + 1)
            _draw_in(slope[one], value[one], found.point[one])
            kind[one] = _proven(
                slope[one], value[one], error[one], Margins(*(c[one] for c in found))
            )
    return kind, found, bases


def _proven(slope, value, error, found: Margins) -> np.ndarray:
    """FOUND where the point, REFUTED where the multipliers are proofs."""
    good = found.solved & (found.margin > 0) & inside(slope, value, error, found.point)
    weight = found.weight
    highest = (weight * (value + 2 * error)).sum(axis=1)
    highest += np.abs(np.matmul(weight[:, None], slope)[:, 0]).sum(axis=1)
    refuted = found.solved & (found.margin <= 0) & (highest <= 0) & (weight > 0).any(axis=1)
    return np.where(good, FOUND, np.where(refuted, REFUTED, OPEN))


def _recorded(search: Search, batch: Batch, part: Parts, weight: np.ndarray) -> np.ndarray:
    """The numbers of new proofs, their multipliers those of the rows as they were."""
    assert search.recorder is not None
    owner, place = np.nonzero(weight > 0)
    scale = batch.scale[part.parent[owner], part.row[owner, place]]
    count = np.bincount(owner, minlength=len(weight))
    names = batch.named(part)[owner, place]
    return search.recorder.add_clauses(count, names, weight[owner, place] / scale)


def inside(slope, value, error, point) -> np.ndarray:
    """Whether points are proven to satisfy all rows and to lie in the open box."""
    z = np.matmul(slope, point[..., None])[..., 0] + value
    # Scaled by the radii a coordinate keeps its side of 1 if it is not within rounding of it.
    return (z > error).all(axis=1) & (np.abs(point) < 1 - 2.0**-50).all(axis=1)


def centred(slope, value, error, point) -> np.ndarray:
    """Points of larger margin in the same cells, where some are found."""
    if slope.shape[2] > SMALL_DIMENSION or not slope.shape[1]:
        return point
    found = solve_margins(slope, value)
    better = found.solved & (found.margin > 0) & inside(slope, value, error, found.point)
    return np.where(better[:, None], found.point, point)


def _draw_in(slope: np.ndarray, value: np.ndarray, point: np.ndarray) -> None:
    """Moves points off the faces of the box, towards its centre, by half of what the rows allow."""
    along = np.matmul(slope, point[..., None])[..., 0]
    slack = np.maximum((along + value).min(axis=1), 0.0)
    point *= 1 - np.minimum(0.5, slack / (2 * np.abs(along).max(axis=1) + _TINY))[:, None]


# In rationals ------------------------------------------------------------------------------------


def _settle(search: Search, batch: Batch, tests: Parts, i: int, out: Answers) -> None:
    """One test, exactly: by a proof that is known for the cell, else by a new decision."""
    p = int(tests.parent[i])
    cell = batch.cells[p]
    named = batch.named(tests.rows(slice(i, i + 1)))[0, : tests.size[i]]
    names = [tuple(row) for row in named.tolist()]
    mine = {(e, s) for stage, e, s in names if stage == cell.stage}
    for needs, noted in batch.known.get(p, ()):
        if needs <= mine:
            out.kind[i], out.proof[i] = REFUTED, noted()
            return
    search.require_time()
    search.settled_exactly += 1
    slope, value = zip(*(exact_row(search, cell, *name) for name in names), strict=True)
    slope, value = np.stack(slope), np.array(value, object)
    radius = search.radius[cell.window]
    found = decide(slope, value, exact.rationals(radius), search.require_time)
    if found.point is None:
        used = [names[r] for r in found.weight]
        noted = partial(_noted, search, used, list(found.weight.values()))
        needs = frozenset((e, s) for stage, e, s in used if stage == cell.stage)
        batch.known.setdefault(p, []).append((needs, noted))
        out.kind[i], out.proof[i] = REFUTED, noted()
        return
    point = np.array([exact.rounded(x) for x in found.point / exact.rationals(radius)])
    at = exact.rationals(point * radius)
    good = all(abs(x) < exact.rational(r) for x, r in zip(at, radius, strict=True))
    good = good and all(z > 0 for z in slope @ at + value)
    out.kind[i], out.point[i] = FOUND, point if good else np.nan


def _noted(search: Search, names: list[tuple[int, int, int]], weight: list[Any]) -> int:
    """The number of a proof with rational multipliers."""
    if search.recorder is None:
        return 0
    common = math.lcm(*(exact.key(w)[1] for w in weight))
    whole = [t * (common // b) for t, b in map(exact.key, weight)]
    return search.recorder.exact_clause(names, whole)


def exact_steps(search: Search, cell: Cell, literal: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Steps along all axes from u that stay in a part of the cell; 0: none that floats can tell.

    literal: (m, 3) stage, entry and sign of the rows that bound the part.
    """
    search.require_time()
    steps, at = np.zeros(len(u)), exact.rationals(u)
    for j, (behind, ahead) in enumerate(_rooms(search, cell, literal, at)):
        length = ahead if ahead >= behind else -behind
        steps[j] = (u[j] + exact.rounded(length) * 0.75) - u[j]
        end = u[j] + steps[j]
        if not (np.isfinite(end) and -behind <= exact.rational(end) - at[j] <= ahead):
            steps[j] = 0.0
    return steps


def exact_point(
    search: Search, cell: Cell, literal: np.ndarray, u: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A point (k,) of the same part and steps (k,) from it in rationals; u itself unless NaN."""
    search.require_time()
    search.settled_exactly += 1
    if np.isfinite(u).all() or not len(literal):
        at = exact.rationals(np.nan_to_num(u))
    else:
        slope, value = zip(*(exact_row(search, cell, *n) for n in literal.tolist()), strict=True)
        radius = exact.rationals(search.radius[cell.window])
        at = decide(np.stack(slope), np.array(value, object), radius, search.require_time).point
        assert at is not None, "a part that was proven to have points"
    rooms = _rooms(search, cell, literal, at)
    steps = [(ahead if ahead >= behind else -behind) / 2 for behind, ahead in rooms]
    return at, np.array(steps, object)


def _rooms(search: Search, cell: Cell, literal: np.ndarray, at: np.ndarray) -> list[tuple]:
    """How far one can go from a point, back and ahead along every axis, inside a part."""
    rows = [exact_row(search, cell, *name) for name in literal.tolist()]
    gaps = [value + slope @ at for slope, value in rows]
    rooms = []
    for j, r in enumerate(exact.rationals(search.radius[cell.window])):
        sides = [(g, s[j]) for g, (s, _) in zip(gaps, rows, strict=True)]
        ahead = min([r - at[j], *(g / -s for g, s in sides if s < 0)])
        behind = min([r + at[j], *(g / s for g, s in sides if s > 0)])
        rooms.append((behind, ahead))
    return rooms

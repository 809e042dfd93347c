"""Is there a point of a node with this sign of that switching value? Many such tests at once."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from jaxregions import exact
from jaxregions.engines.enclosures import Rows
from jaxregions.engines.farkas import decide
from jaxregions.engines.margins import Margins, solve_margins
from jaxregions.engines.programs import MarginProgram
from jaxregions.engines.search import Cell, Search, exact_row

__all__ = [
    "FOUND",
    "PROGRAMS",
    "REFUTED",
    "SMALL_DIMENSION",
    "UNSETTLED",
    "Answers",
    "Batch",
    "Tests",
    "centred",
    "exact_steps",
    "tested",
]

FOUND, REFUTED, UNSETTLED = range(3)
_TINY = np.finfo(np.float64).tiny
SMALL_DIMENSION = 32  # up to here arrays of programs are faster than HiGHS, one after the other
_ENTRIES = 1 << 21  # of rows gathered together
PROGRAMS = 16  # kept warm


class Tests(NamedTuple):
    """parent (T,) in the batch; unit, sign: (T, D) what is known (sign 0: nothing); asked, side:
    (T,) the switching value and the sign that is looked for."""

    parent: np.ndarray
    unit: np.ndarray
    sign: np.ndarray
    asked: np.ndarray
    side: np.ndarray


class Answers(NamedTuple):
    """kind (T,); point (T, k) where FOUND; proof (T,) where REFUTED; margin (T,)."""

    kind: np.ndarray
    point: np.ndarray
    proof: np.ndarray
    margin: np.ndarray


@dataclasses.dataclass(eq=False)
class Batch:
    """Cells of one stage with their rows: ``fixed`` rows that bound the cell, filled up with rows
    that always hold, and then those of the stage.

    slope, value, error, scale: (P, fixed + n, ...). literal: (P, fixed, 3). margin: (P, n) of the
    tests at the top. known: by cell, proofs that were made in rationals. order, cut: (P, n), (P,)
    the values that may cut each cell, in the order of branching, and how many.
    """

    cells: list[Cell]
    fixed: int
    slope: np.ndarray
    value: np.ndarray
    error: np.ndarray
    scale: np.ndarray
    literal: np.ndarray
    margin: np.ndarray
    known: dict[int, list[tuple[frozenset, int]]]
    programs: dict[int, tuple[np.ndarray, MarginProgram]]
    order: np.ndarray
    cut: np.ndarray

    @staticmethod
    def of(search: Search, cells: list[Cell], rows: list[Rows]) -> Batch:
        count, k = len(cells), len(cells[0].u)
        fixed, size = max(len(c.value) for c in cells), len(rows[0].value)
        slope, value = np.zeros((count, fixed + size, k)), np.ones((count, fixed + size))
        error, scale = np.zeros(value.shape), np.ones(value.shape)
        literal = np.zeros((count, fixed, 3), np.int64)
        for p, c in enumerate(cells):
            m = len(c.value)
            slope[p, :m], value[p, :m], error[p, :m] = c.slope, c.value, c.error
            scale[p, :m], literal[p, :m] = c.scale, c.literal
        own = slice(fixed, None)
        radius = np.stack([search.radius[c.window] for c in cells])[:, None]
        slopes = np.stack([r.slope for r in rows]) * radius
        values = np.stack([r.value for r in rows])
        length = np.sqrt((slopes**2).sum(axis=-1))
        length = np.where(length > _TINY, length, np.abs(values))
        length = np.where(length > _TINY, length, 1.0)
        slope[:, own], value[:, own] = slopes / length[..., None], values / length
        error[:, own] = np.stack([r.error for r in rows]) / length
        scale[:, own] = length
        margin = np.zeros((count, size))
        none = np.zeros((count, 0), np.int64), np.zeros(count, np.int64)
        return Batch(cells, fixed, slope, value, error, scale, literal, margin, {}, {}, *none)

    def side(self, parent: np.ndarray, unit: np.ndarray, point: np.ndarray) -> np.ndarray:
        """The proven sign of switching values at points of cells; 0: not proven."""
        at = parent, self.fixed + unit
        z = (self.slope[at] * point).sum(axis=-1) + self.value[at]
        return (z > self.error[at]).astype(np.int64) - (z < -self.error[at])

    def rows(self, parent: np.ndarray, unit: np.ndarray, sign: np.ndarray):
        """slope (T, R, k), value, error, scale (T, R) of cells and signs, R = fixed + D."""
        own = self.fixed + unit
        none, parents = sign == 0, parent[:, None]
        slope = self.slope[parents, own] * sign[..., None]
        value = np.where(none, 1.0, self.value[parents, own] * sign)
        error = np.where(none, 0.0, self.error[parents, own])
        scale = self.scale[parents, own]
        pairs = ((self.slope, slope), (self.value, value), (self.error, error))
        pairs = (*pairs, (self.scale, scale))
        return tuple(np.concatenate([a[parent, : self.fixed], b], axis=1) for a, b in pairs)

    def named(self, parent: np.ndarray, unit: np.ndarray, sign: np.ndarray) -> np.ndarray:
        """(T, R, 3) stage, entry and sign of the same rows; sign 0: none."""
        stage = np.full(unit.shape, self.cells[0].stage)
        own = np.stack([stage, unit, sign.astype(np.int64)], axis=-1)
        return np.concatenate([self.literal[parent], own], axis=1)


def tested(search: Search, batch: Batch, tests: Tests) -> Answers:
    """Answers to all tests, each proven; UNSETTLED: neither point nor proof, which is tallied."""
    count, k = len(tests.parent), batch.slope.shape[2]
    rows = batch.fixed + tests.unit.shape[1] + 1
    out = Answers(
        np.full(count, UNSETTLED), np.zeros((count, k)), np.full(count, -1), np.zeros(count)
    )
    step = max(1, _ENTRIES // (rows * k))
    for start in range(0, count, step):
        part = slice(start, start + step)
        _tested(search, batch, Tests(*(t[part] for t in tests)), Answers(*(o[part] for o in out)))
    return out


def _tested(search: Search, batch: Batch, tests: Tests, out: Answers) -> None:
    unit = np.concatenate([tests.unit, tests.asked[:, None]], axis=1)
    sign = np.concatenate([tests.sign, tests.side[:, None]], axis=1)
    slope, value, error, scale = batch.rows(tests.parent, unit, sign)
    search.programs += len(tests.parent)
    if slope.shape[2] <= SMALL_DIMENSION:
        found = solve_margins(slope, value)
    else:
        found = _one_by_one(batch, tests.parent, unit, sign)
    out.margin[:], out.point[:] = found.margin, found.point
    good = found.solved & (found.margin > 0) & inside(slope, value, error, found.point)
    out.kind[good] = FOUND
    weight = found.weight
    highest = (weight * (value + 2 * error)).sum(axis=1)
    highest += np.abs(np.matmul(weight[:, None], slope)[:, 0]).sum(axis=1)
    refuted = found.solved & (found.margin <= 0) & (highest <= 0) & (weight > 0).any(axis=1)
    out.kind[refuted] = REFUTED
    if search.recorder is not None and refuted.any():
        names = batch.named(tests.parent[refuted], unit[refuted], sign[refuted])
        owner, row = np.nonzero(weight[refuted] > 0)
        original = weight[refuted][owner, row] / scale[refuted][owner, row]
        count = np.bincount(owner, minlength=int(refuted.sum()))
        out.proof[refuted] = search.recorder.add_clauses(count, names[owner, row], original)
    for i in np.flatnonzero(~(good | refuted)).tolist():
        _settle(search, batch, int(tests.parent[i]), unit[i], sign[i], i, out)


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


def _one_by_one(batch: Batch, parent, unit, sign) -> Margins:
    """The same margins from HiGHS, warm from one test to the next of a cell."""
    count, rows, k = len(parent), batch.fixed + unit.shape[1], batch.slope.shape[2]
    out = Margins(
        np.zeros(count), np.zeros((count, k)), np.zeros((count, rows)), np.zeros(count, bool)
    )
    for i in np.argsort(parent, kind="stable").tolist():
        p = int(parent[i])
        real = np.flatnonzero(sign[i])
        units, program = _program(batch, p)
        cell = batch.cells[p]
        literal = len(cell.value) + 2 * np.searchsorted(units, unit[i][real]) + (sign[i][real] < 0)
        active = [*range(len(cell.value)), *literal.tolist()]
        answer = program.solve(active)
        if answer is not None:
            out.solved[i], out.margin[i] = True, answer.margin
            out.point[i] = _drawn_in(program, active, answer.point)
            out.weight[i, : len(cell.value)] = answer.weight[: len(cell.value)]
            out.weight[i, batch.fixed + real] = answer.weight[literal]
    return out


def _program(batch: Batch, p: int) -> tuple[np.ndarray, MarginProgram]:
    """The rows that bound a cell, and both sides of those that may cut it."""
    if p in batch.programs:
        return batch.programs[p]
    if len(batch.programs) >= PROGRAMS:
        batch.programs.clear()
    units = np.sort(batch.order[p, : batch.cut[p]])
    m = len(batch.cells[p].value)
    rows = []
    for table in (batch.slope[p], batch.value[p]):
        own = table[batch.fixed + units]
        rows.append(
            np.concatenate([table[:m], np.stack([own, -own], 1).reshape(-1, *own.shape[1:])])
        )
    batch.programs[p] = units, MarginProgram(*rows)
    return batch.programs[p]


def _drawn_in(program: MarginProgram, active: list[int], point: np.ndarray) -> np.ndarray:
    """The point, moved towards the window's centre by half of what the margins allow."""
    along = program.slope[active] @ point
    slack = (along + program.value[active]).min()
    return point * (1 - min(0.5, max(slack, 0.0) / (2 * np.abs(along).max() + _TINY)))


# In rationals ------------------------------------------------------------------------------------


def _settle(
    search: Search, batch: Batch, p: int, unit: np.ndarray, sign: np.ndarray, i: int, out: Answers
) -> None:
    """One test, exactly: by a proof that is known for the cell, else by a new decision."""
    cell = batch.cells[p]
    mine = {(u, s) for u, s in zip(unit.tolist(), sign.tolist(), strict=True) if s}
    for needs, number in batch.known.get(p, ()):
        if needs <= mine:
            out.kind[i], out.proof[i] = REFUTED, number
            return
    search.settled_exactly += 1
    names = [tuple(row) for row in cell.literal.tolist()]
    names += [(cell.stage, u, s) for u, s in zip(unit.tolist(), sign.tolist(), strict=True) if s]
    slope, value = zip(*(exact_row(search, cell, *name) for name in names), strict=True)
    slope, value = np.stack(slope), np.array(value, object)
    radius = search.radius[cell.window]
    found = decide(slope, value, exact.rationals(radius))
    if found.point is None:
        used = list(found.weight)
        number = 0
        if search.recorder is not None:
            common = math.lcm(*(exact.key(w)[1] for w in found.weight.values()))
            whole = [t * (common // b) for t, b in map(exact.key, found.weight.values())]
            number = search.recorder.exact_clause([names[r] for r in used], whole)
        needs = frozenset((e, s) for st, e, s in (names[r] for r in used) if st == cell.stage)
        batch.known.setdefault(p, []).append((needs, number))
        out.kind[i], out.proof[i] = REFUTED, number
        return
    point = np.array([exact.rounded(x) for x in found.point / exact.rationals(radius)])
    at = exact.rationals(point * radius)
    good = all(abs(x) < exact.rational(r) for x, r in zip(at, radius, strict=True))
    if good and all(z > 0 for z in slope @ at + value):
        out.kind[i], out.point[i] = FOUND, point
    else:
        search.unsettled[cell.window] += 1


def exact_steps(search: Search, cell: Cell, literal: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Steps along all axes from u that stay in a part of the cell; 0: none that floats can tell.

    literal: (m, 3) stage, entry and sign of the rows that bound the part.
    """
    rows = [exact_row(search, cell, *name) for name in literal.tolist()]
    at, radius = exact.rationals(u), search.radius[cell.window]
    gaps = [value + slope @ at for slope, value in rows]
    steps = np.zeros(len(u))
    for j, r in enumerate(exact.rationals(radius)):
        ahead = min([r - at[j], *(g / -s[j] for g, (s, _) in zip(gaps, rows) if s[j] < 0)])  # noqa: B905
        behind = min([r + at[j], *(g / s[j] for g, (s, _) in zip(gaps, rows) if s[j] > 0)])  # noqa: B905
        length = ahead if ahead >= behind else -behind
        steps[j] = (u[j] + exact.rounded(length) * 0.75) - u[j]
        moved = exact.rational(u[j] + steps[j]) - at[j]
        if not (-behind <= moved <= ahead):
            steps[j] = 0.0
    return steps

"""Exact region counts of a hyperplane arrangement in windows of one, two or three dimensions.

Deletion-restriction over the open window W, hyperplanes H_1 .. H_m distinct and refining:

    N(W) = 1 + sum_i N(W n H_i; H_1 .. H_{i-1}),

applied until a line is left, on which N is 1 plus the number of distinct crossing points inside W.
So everything comes down to lines and the earlier hyperplanes that cross them. A jitted pass does
all lines of all windows in ball arithmetic; a line on which any decision stays open (coincident
crossings, a crossing on the boundary, parallels) is counted again in rational arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxregions import _criterion, exact
from jaxregions._criterion import Problem
from jaxregions._lines import WINDOWS, Rows, count_crossings, lines_of
from jaxregions._records import is_traced
from jaxregions.exact import Ball
from jaxregions.hyperplanes import Hyperplanes, _check_pair
from jaxregions.windows import Window

__all__ = ["ArrangementCounts", "count_arrangement"]

_LINES = 1 << 21  # of some windows at a time


class ArrangementCounts(NamedTuple):
    """Per window, each of the windows' leading shape.

    regions: int64, exact number of full-dimensional cells of the arrangement in the open window.
    hyperplanes: int64, distinct hyperplanes that refine it.
    certified: bool, every decision proven (True throughout: what floats leave open is settled in
        rational arithmetic).
    rechecked: int64, lines that were counted in rational arithmetic.
    """

    regions: np.ndarray
    hyperplanes: np.ndarray
    certified: np.ndarray
    rechecked: np.ndarray


def count_arrangement(planes: Hyperplanes, windows: Window) -> ArrangementCounts:
    """Exact number of regions that the hyperplanes cut each open window into; k = 1, 2, 3.

    N = sum over flats F of the arrangement that meet the window of |mu(F)| (Zaslavsky in a convex
    window); for n hyperplanes through one interior point in general position N = 2 sum_{j<k}
    C(n-1, j). Concurrent, parallel, duplicate and tangent hyperplanes are counted exactly.

    Args:
      planes: shared (n, d), or one family per window with the windows' leading axes.
      windows: dimension k <= 3 (slices of any input dimension through ``basis``).

    Raises:
      ValueError: k > 3, shapes that do not fit, traced arguments (the result is exact, so it needs
        the numbers).

    Source: MATHEMATICS.md, regions; T. Zaslavsky, Facing up to arrangements (1975).
    """
    _check_pair(planes, windows)
    if is_traced(planes, windows):
        raise ValueError("expected concrete hyperplanes and windows, received traced ones")
    if windows.dimension > 3:
        raise ValueError(
            f"expected windows of dimension 1, 2 or 3, received {windows.dimension}; take a slice "
            "(Window(..., basis=...)) or bracket the count from hits (region_bracket)"
        )
    task = _criterion.problem(planes, windows)
    regions = np.ones(len(task.anchor), np.int64)
    distinct = np.zeros(len(task.anchor), np.int64)
    rechecked = np.zeros(len(task.anchor), np.int64)
    sign, _ = _criterion.relation(task)
    hit = (sign > 0).reshape(len(sign), -1)
    hits = hit.sum(1)
    # Windows of similar many hits at a time, as all have rows for the most.
    order = np.argsort(hits, kind="stable")
    order = order[hits[order] > 0]
    while len(order):
        most = max(1, min(WINDOWS, _LINES // int(hits[order[-1]]) ** (task.radius.shape[1] - 1)))
        part, order = order[-most:], order[:-most]
        regions[part], distinct[part], rechecked[part] = _count_chunk(task, part, hit[part])
    shape = windows.batch_shape
    return ArrangementCounts(
        regions.reshape(shape),
        distinct.reshape(shape),
        np.ones(shape, bool),
        rechecked.reshape(shape),
    )


def region_bracket(hits: Any, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Proven bounds on the regions of one layer in one parent region, from its hits alone.

    1 + m <= N <= sum_{j=0}^{min(k, m)} C(m, j), m distinct refining hyperplanes. The upper bound is
    a float64 that is rounded up once it passes 2^53.

    Raises:
      ValueError: negative hits, dimension < 1.

    Source: MATHEMATICS.md, regions.
    """
    hits = np.asarray(hits)
    if not np.issubdtype(hits.dtype, np.integer):
        raise ValueError(f"hits: expected whole numbers, received {hits.dtype}")
    if dimension < 1 or (hits < 0).any():
        raise ValueError(
            f"expected hits >= 0 and dimension >= 1, received {hits.min()}, {dimension}"
        )

    def upper(m: int) -> float:
        total, term = 1, 1
        for j in range(1, min(dimension, m) + 1):
            term = term * (m - j + 1) // j
            total += term
        if total > 1 << 1023:
            return np.inf
        return float(total) if total <= 1 << 53 else float(np.nextafter(float(total), np.inf))

    table = {m: upper(m) for m in np.unique(hits).tolist()}
    return 1 + hits, np.vectorize(table.__getitem__, otypes=[float])(hits)


def _count_chunk(task: Problem, part: np.ndarray, hit: np.ndarray):
    """regions, distinct hyperplanes and rational lines of a few windows with similar many hits."""
    rows = _gather(task, part, hit, int(hit.sum(1).max()))
    active = rows.index >= 0
    _drop_duplicates(task, part, rows, active)
    k = task.radius.shape[1]
    lines = lines_of(rows.unit, active, k)
    crossings, meets, settled = count_crossings(rows, active, lines)
    cache: dict[int, _Exact] = {}
    for at in np.flatnonzero(~settled):
        w, *places = lines[at]
        if w not in cache:
            cache.clear()
            cache[w] = _Exact(task, part[w], rows.index[w], active[w])
        counted = cache[w].line(*places)
        meets[at], crossings[at] = counted is not None, counted or 0
    distinct, total = active.sum(1), np.zeros(len(part), np.int64)
    np.add.at(total, lines[:, 0], np.where(meets, 1 + crossings, 0))
    regions = 1 + total + (distinct if k == 3 else 0) - (1 if k == 1 else 0)
    return regions, distinct, np.bincount(lines[~settled, 0], minlength=len(part))


def _gather(task: Problem, part: np.ndarray, hit: np.ndarray, size: int) -> Rows:
    count, breaks = len(part), task.offset.shape[2]
    d, k = task.anchor.shape[1], task.radius.shape[1]
    index = np.argsort(~hit, axis=1, kind="stable")[:, :size]
    index = np.pad(index, ((0, 0), (0, size - index.shape[1])))
    padding = np.arange(size) >= hit.sum(1)[:, None]
    unit = index // breaks
    plane = np.zeros((count, 1), int) if len(task.normal) == 1 else part[:, None]
    normal = task.normal[plane, unit]
    offset = task.offset[plane, unit, index % breaks]
    moved, extent = _criterion.displacement(task, part)
    basis = np.eye(d) if task.basis is None else task.basis[0 if len(task.basis) == 1 else part]
    radius = task.radius[part][:, None]
    slope = (normal @ basis) * radius
    bound, length = exact.gamma(d + 8, np.float64), _criterion.size_of(normal)
    lost = (2 * d * k + 16) * _LEAST  # of products that underflow
    slope_error = bound * (abs(normal) @ abs(basis)) * radius + lost * (1 + radius)
    value = np.einsum("wmd,wd->wm", normal, moved) - offset
    value_error = exact.gamma(2 * (d + k) + 16, np.float64) * (
        extent[:, None] * length + abs(offset)
    )
    value_error = value_error + lost * (1 + length)
    # Rows scaled by powers of two: exact, and the crossings stay where they are.
    power = -np.frexp(abs(slope).max(-1))[1]
    common, concurrent, inside = _common_points(task, part)
    index = np.where(padding, -1, index)
    return Rows(
        index,
        np.where(padding, -1, unit),
        Ball(*_scaled(slope, slope_error, power[..., None])),
        Ball(*_scaled(value, value_error, power)),
        (offset == 0) & concurrent[:, None] & ~padding,
        common,
        inside,
    )


_SMALL = np.finfo(np.float64).tiny
_LEAST = np.finfo(np.float64).smallest_subnormal


def _scaled(mid: np.ndarray, rad: np.ndarray, power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):  # an infinite ball decides nothing
        return np.ldexp(mid, power), np.ldexp(rad, power) + _SMALL


def _common_points(task: Problem, part: np.ndarray) -> tuple[Ball, np.ndarray, np.ndarray]:
    """Where the hyperplanes' point p lies in each window, (W, k) in units of the radius.

    Also whether p lies in the window's slice exactly, and whether inside the open window. All
    hyperplanes with offset exactly 0 pass through p: knowing that spares the rational arithmetic
    that their crossings would need.
    """
    point = task.point[0 if len(task.point) == 1 else part]
    moved = point - task.anchor[part]
    radius = task.radius[part]
    if task.basis is None:
        with np.errstate(over="ignore"):  # far outside
            mid = moved / radius
        ball = Ball(mid, abs(mid) * exact.gamma(4, np.float64) + _SMALL)
        inside = abs(moved) < radius
        for w, j in np.argwhere(abs(abs(mid) - 1) <= exact.gamma(8, np.float64)):
            gap = exact.rational(np.broadcast_to(point, moved.shape)[w, j])
            gap = abs(gap - exact.rational(task.anchor[part[w], j]))
            inside[w, j] = gap < exact.rational(radius[w, j])
        return ball, np.ones(len(part), bool), inside.all(1)
    k = radius.shape[1]
    mid = np.zeros((len(part), k))
    known, inside = np.zeros(len(part), bool), np.zeros(len(part), bool)
    basis = np.broadcast_to(task.basis, (len(task.anchor), *task.basis.shape[1:]))
    for w, row in enumerate(part):
        coordinates = _slice_coordinates(
            basis[row], moved[w], task.anchor[row], np.broadcast_to(point, moved.shape)[w]
        )
        if coordinates is None:
            continue
        if task.shift is not None:
            coordinates = coordinates - exact.rationals(task.shift[row])
        scaled = coordinates / exact.rationals(radius[w])
        known[w], inside[w] = True, all(abs(u) < 1 for u in scaled)
        if inside[w]:  # otherwise not looked at, and perhaps beyond the floats
            mid[w] = [exact.rounded(u) for u in scaled]
    return Ball(mid, abs(mid) * exact.gamma(2, np.float64) + _SMALL), known, inside


def _slice_coordinates(basis, moved, anchor, point) -> np.ndarray | None:
    """The exact u with anchor + basis u = point, or None if there is none (or none near)."""
    if not moved.any():
        return exact.rationals(np.zeros(basis.shape[1]))
    u, *_ = np.linalg.lstsq(basis, moved, rcond=None)
    slack = np.sqrt(np.finfo(np.float64).eps) * (abs(basis) @ abs(u) + abs(anchor) + abs(point))
    if (abs(basis @ u - moved) > slack).any():
        return None
    matrix = exact.rationals(basis)
    target = exact.rationals(point) - exact.rationals(anchor)
    u = exact.solve(matrix.T @ matrix, matrix.T @ target)
    return u if all(r == 0 for r in matrix @ u - target) else None


def _drop_duplicates(task: Problem, part: np.ndarray, rows: Rows, active: np.ndarray) -> None:
    """Clears ``active`` for every hyperplane that is the same set as an earlier one.

    Same sets have proportional coefficients, so a weighted norm of them over the plain one agrees
    to rounding; only those whose enclosures of it are linked are compared, as rationals.
    """
    coefficients = np.concatenate([rows.slope.mid, rows.value.mid[..., None]], axis=-1)
    error = np.concatenate([rows.slope.rad, rows.value.rad[..., None]], axis=-1).max(-1)
    # Scale-free and sign-free; its derivative is at most 16 (k + 1) as the largest slope is >= 1/2.
    weights = np.random.default_rng(0).uniform(1, 2, coefficients.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        squares = coefficients**2
        norm = (squares @ weights) / squares.sum(-1)
    slack = 64 * coefficients.shape[-1] * (error + exact.unit_roundoff(np.float64))
    # Slopes that rounding left nothing of say nothing about the norm.
    known = np.isfinite(norm) & (abs(rows.slope.mid).max(-1) >= 0.5)
    low, high = np.where(known, (norm - slack, norm + slack), [[[-np.inf]], [[np.inf]]])
    low = np.where(active, low, np.inf)
    order = np.argsort(low, axis=1)
    ordered, high = np.take_along_axis(low, order, 1), np.take_along_axis(high, order, 1)
    reach = np.maximum.accumulate(high, axis=1)
    near = (ordered[:, 1:] <= reach[:, :-1]) & (ordered[:, 1:] < np.inf)
    for w in np.flatnonzero(near.any(1)):
        rational = _Exact(task, part[w], rows.index[w], active[w])
        run: dict[Any, int] = {}
        for position, joined in zip(order[w], [False, *near[w]], strict=True):
            run = run if joined else {}
            if not active[w, position]:
                continue
            canonical = rational.canonical(position)
            other = run.setdefault(canonical, position)
            if other != position:
                active[w, max(other, position)] = False
                run[canonical] = min(other, position)


class _Exact:
    """The hyperplanes of one window as rationals g . u + h = 0 in the box |u_j| < r_j."""

    def __init__(self, task: Problem, row: Any, index: np.ndarray, active: np.ndarray):
        self.index, self.active = index, np.flatnonzero(active)
        plane = 0 if len(task.normal) == 1 else row
        self.normal, self.offset = task.normal[plane], task.offset[plane]
        moved = exact.rationals(task.anchor[row])
        self.moved = moved - exact.rationals(task.point[0 if len(task.point) == 1 else row])
        self.basis = None
        if task.basis is not None:
            self.basis = exact.rationals(task.basis[0 if len(task.basis) == 1 else row])
        if task.shift is not None:
            self.moved = self.moved + self.basis @ exact.rationals(task.shift[row])
        self.radius = exact.rationals(task.radius[row])
        self.cache: dict[int, tuple[np.ndarray, Any]] = {}

    def plane(self, position: int) -> tuple[np.ndarray, Any]:
        """g (k,) and h."""
        if position not in self.cache:
            unit, breakpoint = divmod(int(self.index[position]), self.offset.shape[1])
            normal = exact.rationals(self.normal[unit])
            value = normal @ self.moved - exact.rational(self.offset[unit, breakpoint])
            self.cache[position] = (normal if self.basis is None else normal @ self.basis, value)
        return self.cache[position]

    def canonical(self, position: int) -> tuple:
        """Equal exactly for equal hyperplanes: coefficients over the first that is not zero."""
        slope, value = self.plane(position)
        lead = next(g for g in slope if g != 0)
        return tuple(exact.key(c / lead) for c in (*slope, value))

    def line(self, *planes: int) -> int | None:
        """Distinct crossings of a line with earlier hyperplanes; None: not a new line of W.

        The line is the intersection of the named hyperplanes, k - 1 of them (k = 1: any argument).
        """
        k = len(self.radius)
        if k == 1:
            origin, direction = exact.rationals([0.0]), exact.rationals([1.0])
            earlier = self.active
        elif k == 2:
            slope, value = self.plane(planes[0])
            direction = np.array([-slope[1], slope[0]])
            origin = slope * (-value / (slope @ slope))
            earlier = self.active[self.active < planes[0]]
        else:
            (a, a_value), (b, b_value) = self.plane(planes[0]), self.plane(planes[1])
            direction = np.cross(a, b)
            size = direction @ direction
            if size == 0:
                return None
            origin = a_value * np.cross(b, direction) + b_value * np.cross(direction, a)
            origin = origin * (-1 / size)
            earlier = self.active[self.active < planes[1]]
        return self._crossings(origin, direction, earlier)

    def _crossings(self, origin, direction, earlier) -> int | None:
        edges = [
            sorted((s * r - q) / v for s in (-1, 1))
            for q, v, r in zip(origin, direction, self.radius, strict=True)
            if v != 0
        ]
        low, high = max(e[0] for e in edges), min(e[1] for e in edges)
        beside = any(
            v == 0 and abs(q) >= r for q, v, r in zip(origin, direction, self.radius, strict=True)
        )
        if beside or low >= high:
            return None
        found = set()
        for position in earlier:
            slope, value = self.plane(position)
            rate, level = slope @ direction, value + slope @ origin
            if rate == 0 and level == 0:
                return None
            if rate != 0 and low < (at := -level / rate) < high:
                found.add(exact.key(at))
        return len(found)

"""Counting the cells of flats by their lowest vertices, and where later values cross the edges.

A bounded convex cell has exactly one lowest vertex in a generic direction. At a vertex of a simple
subdivision a cell is a choice of one ray for every constraint (two, one to each side, for a zero
set, which may both go up since deeper ones bend; one for a side of the window), and it is the
cell's lowest if all of them go up:

    cells = sum over vertices of the product over constraints of (rays that go up: 0, 1 or 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import comb

import numpy as np

from jaxregions import exact
from jaxregions.engines.apexes import added
from jaxregions.engines.edges import apart_from, in_order
from jaxregions.engines.points import U, crossing
from jaxregions.engines.signs import one_bits, packed
from jaxregions.engines.skeleton import Edges, Layer, Part, exact_row

__all__ = ["coinciding", "crossed", "flats", "swept"]

CROSSINGS = 1 << 23  # of a part, held at once unless one switching value has more
VALUES = 1 << 18  # switching values of flats held at once, unless one flat has more


def crossed(
    part: Part, edges: Edges, *, whole: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(edge, switching value) of all sign changes of later switching values along edges, those of a
    few values at a time where there are more than ``CROSSINGS``, unless wanted as a ``whole``."""
    columns = part.values.shape[1]
    above = packed(np.triu(np.ones((columns + 1, columns), bool)))
    a, b = edges.tail, edges.head
    changes = (part.positive[a] & part.negative[b]) | (part.negative[a] & part.positive[b])
    changes &= above[part.unit[a] + 1 - part.first]
    if whole or int(np.bitwise_count(changes).sum()) <= CROSSINGS:
        at, column = one_bits(changes)
        yield at, column + part.first
        return
    word, bit = np.divmod(np.arange(columns), 64)
    mask = np.uint64(1) << bit.astype(np.uint64)
    many = [int(np.count_nonzero(changes[:, w] & m)) for w, m in zip(word, mask, strict=True)]
    low = 0
    while low < columns:
        high = low + 1
        while high < columns and sum(many[low : high + 1]) <= CROSSINGS:
            high += 1
        some = np.zeros(changes.shape[1], np.uint64)
        np.bitwise_or.at(some, word[low:high], mask[low:high])
        at, column = one_bits(changes & some)
        if len(at):
            yield at, column + part.first
        low = high


def flats(part: Part, edges: Edges, at: np.ndarray, unit: np.ndarray) -> Iterator[np.ndarray]:
    """Indices into the crossings, whole flats at a time."""
    if not len(at):
        return
    flat = unit * (int(part.group[-1]) + 1) + part.group[edges.tail[at]]
    order = np.argsort(flat, kind="stable")
    flat = flat[order]
    begin = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    stops = np.append(begin[1:], len(flat))
    rows, low = max(1, VALUES // part.values.shape[1]), 0
    while low < len(flat):
        fits = int(np.searchsorted(stops, low + rows, side="right"))
        high = int(stops[max(fits - 1, int(np.searchsorted(begin, low)))])
        yield order[low:high]
        low = high


def swept(layer: Layer, part: Part, edges: Edges) -> tuple[np.ndarray, np.ndarray]:
    """Cells of the part's flats, and the windows where an edge is level: not a generic direction.

    Returns:
      (W, D), one column a direction; (W, 1) on lines, whose edges are their cells.
    """
    windows, slots = len(layer.inert), part.planes.shape[1]
    if part.heights is None or part.height_error is None:
        cells = np.bincount(part.window[edges.tail], minlength=windows)
        return cells[:, None], np.zeros(0, np.int64)
    a, b = edges.tail, edges.head
    bound = (part.height_error[a] + part.height_error[b]) * (1 + 8 * U)
    from_tail = a.astype(np.int64) * slots + edges.tail_slot
    from_head = b.astype(np.int64) * slots + edges.head_slot
    from_head[edges.head_slot < 0] = part.size * slots  # an apex has its weight
    counts, level = [], []
    for column, height in enumerate(part.heights.T):
        rise = height[b] - height[a]
        up = rise > 0
        layer.ledger.decisions += len(rise)
        for edge in np.flatnonzero(~(np.abs(rise) > bound)).tolist():
            column_ = column - len(layer.directions)
            low, high = (exact_row(layer, part, int(v[edge]))[column_] for v in (a, b))
            layer.ledger.settled_exactly += 1
            up[edge] = high > low
            if high == low:
                level.append(int(part.window[a[edge]]))
        rays = np.bincount(np.where(up, from_tail, from_head), minlength=part.size * slots + 1)
        cells = rays[:-1].reshape(part.size, slots).prod(axis=1)
        if part.apexes is not None:
            cells += part.apexes.weight
        counts.append(_sums(part.window, cells, windows))
    return np.stack(counts, axis=1), np.unique(np.array(level, np.int64))


def _sums(window: np.ndarray, cells: np.ndarray, windows: int) -> np.ndarray:
    """(W,) exact sums, far above 2^53 too."""
    out = np.zeros(windows, np.int64)
    begin = np.flatnonzero(np.append(True, window[1:] != window[:-1]))
    np.add.at(out, window[begin], np.add.reduceat(cells, begin))
    return out


def coinciding(
    layer: Layer, part: Part, edges: Edges, at, unit, apexes: dict[int, list[list[int]]]
) -> np.ndarray:
    """(W,) what several switching values through one point change in the number of points.

    A point on q > k of them is met C(q, k) times and adds ``added`` cells. It is dealt with on the
    line of its first k - 1; in the first stage, where hyperplanes meet once only, on any line, and
    remembered in ``apexes``: per window the switching values that vanish at each.
    """
    k, change = layer.sides // 2, np.zeros(len(layer.inert), np.int64)
    crossings = np.bincount(at, minlength=len(edges.key))
    several = np.flatnonzero(crossings[at] > 1)
    at, unit = at[several], unit[several]
    tail, head, column = edges.tail[at], edges.head[at], unit - part.first
    error = np.maximum(part.error[tail], part.error[head])
    t, error = crossing(part.values[tail, column], part.values[head, column], error)
    order = in_order(at, t)
    at, unit, t, error = at[order], unit[order], t[order], error[order]
    close = (at[1:] == at[:-1]) & ~apart_from(t, error)
    layer.ledger.decisions += len(close)
    for edge in np.unique(at[1:][close]).tolist():
        low, high = np.searchsorted(at, edge), np.searchsorted(at, edge, side="right")
        row = int(edges.tail[edge])
        window, line, units = int(part.window[row]), part.new[row].tolist(), unit[low:high]
        for through in apexes.get(window, []):
            if set(line) <= set(through):  # those are here, once and for all
                units = units[~np.isin(units, through)]
        if len(units) < 2:
            continue
        a, b = exact_row(layer, part, row), exact_row(layer, part, int(edges.head[edge]))
        places = sorted(a[u] / (a[u] - b[u]) for u in units.tolist())
        layer.ledger.settled_exactly += len(places) - 1
        for place in {exact.key(p): p for p, q in pairwise(places) if p == q}.values():
            values = (a + (b - a) * place)[: layer.inert.shape[1]]
            through = [u for u, value in enumerate(values) if value == 0]
            if layer.stage == 0:
                apexes.setdefault(window, []).append(through)
            elif through[: k - 1] != line:
                continue
            change[window] += added(len(through), k) - comb(len(through), k)
    return change

"""Slow, plain ways to get the package's numbers. They share no code with it."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog


def fractions(array):
    """A float array as nested lists of exact fractions."""
    array = np.asarray(array, np.float64)
    if array.ndim == 0:
        return Fraction(float(array))
    return [fractions(row) for row in array]


def feasible(rows):
    """Whether {u : a . u + b > 0 for all (a, b)} is non-empty: Fourier-Motzkin over fractions."""
    rows = [(list(a), b) for a, b in rows]
    for j in range(len(rows[0][0])):
        # Normalised by the eliminated variable: u_j > -rest (lower) or u_j < rest (upper).
        lower, upper, free = [], [], []
        for a, b in rows:
            if a[j] == 0:
                free.append((a, b))
            else:
                scaled = ([x / abs(a[j]) for x in a], b / abs(a[j]))
                (lower if a[j] > 0 else upper).append(scaled)
        rows = free + [
            ([x + y for x, y in zip(a, c, strict=True)], b + e) for a, b in lower for c, e in upper
        ]
        rows = list({(tuple(a), b): (list(a), b) for a, b in rows}.values())
        if not rows:
            return True
    return all(b > 0 for _, b in rows)


def slice_rows(normal, point, offset, center, basis=None):
    """Hyperplanes in slice coordinates: (g, h) fractions with g . u + h = 0, one per (unit, k)."""
    normal, point, offset, center = map(fractions, (normal, point, offset, center))
    basis = None if basis is None else fractions(np.asarray(basis).T)
    rows = []
    for w, offsets in zip(normal, offset, strict=True):
        value = sum(a * (c - p) for a, c, p in zip(w, center, point, strict=True))
        slope = (
            w
            if basis is None
            else [sum(a * b for a, b in zip(w, col, strict=True)) for col in basis]
        )
        rows += [(slope, value - o) for o in offsets]
    return rows


def box_rows(radius):
    """|u_j| < r_j as rows (g, h) with g . u + h > 0."""
    radius = fractions(radius)
    unit = lambda j, s: [Fraction(s if i == j else 0) for i in range(len(radius))]  # noqa: E731
    return [(unit(j, s), r) for j, r in enumerate(radius) for s in (1, -1)]


def count_cells(rows, radius):
    """Cells of {g . u + h = 0} in the open box: a sign tree with an exact test at every node."""
    fixed = box_rows(radius)
    rows = [(g, h) for g, h in rows if any(g)]

    def descend(index, chosen):
        if index == len(rows):
            return 1
        g, h = rows[index]
        total = 0
        for sign in (1, -1):
            side = [*chosen, ([sign * x for x in g], sign * h)]
            if feasible(fixed + side):
                total += descend(index + 1, side)
        return total

    return descend(0, [])


def count_cells_by_linear_programs(slopes, values, radius, fixed=()):
    """The same count from one linear program per sign vector, all 2^m of them (floats).

    fixed: the signs of the first rows, where they are known.
    """
    slopes, values, radius = map(np.asarray, (slopes, values, radius))
    size = np.abs(slopes).max(axis=1)
    size = np.where(size > 0, size, np.abs(values))  # a constant row: one side or nothing
    slopes, values = slopes / size[:, None], values / size
    count = 0
    for signs in product((1.0, -1.0), repeat=len(values) - len(fixed)):
        s = np.array([*fixed, *signs])
        matrix = np.hstack([-s[:, None] * slopes, np.ones((len(s), 1))])
        answer = linprog(
            [*np.zeros(slopes.shape[1]), -1.0],
            A_ub=matrix,
            b_ub=s * values,
            bounds=[*((-r, r) for r in radius), (None, 1.0)],
            method="highs",
        )
        count += answer.status == 0 and -answer.fun > 1e-9
    return count


# Partitions of a window, cell by cell -------------------------------------------------------------

PIECES = {  # breakpoints, and (slope, intercept) of every piece
    "relu": ([0], [(0, 0), (1, 0)]),
    "leaky": ([0], [(Fraction(1, 4), 0), (1, 0)]),
    "hard_tanh": ([-1, 1], [(0, -1), (1, 0), (0, 1)]),
}


class Cell(NamedTuple):
    """A convex cell of a window: exact vertices in order, the exact affine map (gradient, constant)
    of every coordinate of the current layer, and the signs or maximisers of every stage."""

    vertices: list
    maps: list
    pattern: tuple


def at(affine, vertex):
    gradient, constant = affine
    return sum(g * v for g, v in zip(gradient, vertex, strict=True)) + constant


def sign(number):
    return (number > 0) - (number < 0)


def halves(vertices, affine):
    """The two sides of a convex polygon (or interval), or itself alone when it is not cut."""
    values = [at(affine, v) for v in vertices]
    if not (min(values) < 0 < max(values)):
        return [vertices]
    sides = []
    for side in (1, -1):
        out = []
        for k, (p, a) in enumerate(zip(vertices, values, strict=True)):
            q, b = vertices[k - 1], values[k - 1]
            if a * b < 0:
                out.append(tuple(x + (y - x) * b / (b - a) for x, y in zip(q, p, strict=True)))
            if side * a >= 0:
                out.append(p)
        sides.append([p for k, p in enumerate(out) if p != out[k - 1]])
    return sides


def combination(weights, constant, maps):
    """The affine map sum_j weights_j maps_j + constant."""
    k = len(maps[0][0])
    gradient = tuple(sum(w * m[0][j] for w, m in zip(weights, maps, strict=True)) for j in range(k))
    return gradient, sum(w * m[1] for w, m in zip(weights, maps, strict=True)) + constant


def centroid_signs(vertices, affines):
    middle = [sum(c) / len(vertices) for c in zip(*vertices, strict=True)]
    return tuple(sign(at(affine, middle)) for affine in affines)


def cut_by_all(cell, affines):
    pieces = [cell.vertices]
    for affine in affines:
        pieces = [half for piece in pieces for half in halves(piece, affine)]
    return pieces


def activated(cell, name):
    """The cells into which units of one layer cut a cell; patterns are signs per unit."""
    breaks, pieces = PIECES[name]
    switching = [(g, c - t) for g, c in cell.maps for t in breaks]
    for vertices in cut_by_all(cell, switching):
        signs = centroid_signs(vertices, switching)
        each = [signs[i : i + len(breaks)] for i in range(0, len(signs), len(breaks))]
        maps = []
        for own, (g, c) in zip(each, cell.maps, strict=True):
            slope, intercept = pieces[sum(s > 0 for s in own)]
            maps.append((tuple(slope * x for x in g), slope * c + intercept))
        yield Cell(vertices, maps, (*cell.pattern, tuple(each)))


def maximised(cell, size):
    """max over consecutive groups of ``size``: patterns are the sets of maximisers."""
    groups = [cell.maps[i : i + size] for i in range(0, len(cell.maps), size)]
    lines = [combination((1, -1), 0, pair) for group in groups for pair in combinations(group, 2)]
    for vertices in cut_by_all(cell, lines):
        middle = [sum(c) / len(vertices) for c in zip(*vertices, strict=True)]
        winners, maps = [], []
        for group in groups:
            values = [at(m, middle) for m in group]
            winners.append(tuple(v == max(values) for v in values))
            maps.append(group[values.index(max(values))])
        yield Cell(vertices, maps, (*cell.pattern, tuple(winners)))


def window_cells(layers, center, radius, basis=None):
    """All cells of a network in an open window, in exact fractions.

    layers: (W, b, how): how is an activation of PIECES, None, or the size of the groups of a max.
    """
    center = fractions(center)
    columns = fractions(np.eye(len(center)) if basis is None else basis)
    k = len(columns[0])
    radius = fractions(np.broadcast_to(np.asarray(radius, np.float64), (k,)))
    corners = [(-1,), (1,)] if k == 1 else [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    vertices = [tuple(s * r for s, r in zip(c, radius, strict=True)) for c in corners]
    cells = [Cell(vertices, [(tuple(g), c) for g, c in zip(columns, center, strict=True)], ())]
    for weights, bias, how in layers:
        weights, bias = fractions(weights), fractions(bias)
        cells = [
            c._replace(maps=[combination(w, b, c.maps) for w, b in zip(weights, bias, strict=True)])
            for c in cells
        ]
        if isinstance(how, str):
            cells = [new for c in cells for new in activated(c, how)]
        elif how is not None:
            cells = [new for c in cells for new in maximised(c, how)]
    return cells


def pattern_count(cells):
    return len({c.pattern for c in cells})


def hits_by_stage(cells):
    """Units of every stage that have more than one piece in the window."""
    stages = zip(*(c.pattern for c in cells), strict=True)
    return [sum(len(set(unit)) > 1 for unit in zip(*stage, strict=True)) for stage in stages]


def share_a_facet(one, other):
    """Whether two cells with disjoint interiors touch along more than a point (in 1-d: at all)."""
    if len(one[0]) == 1:
        return bool(set(one) & set(other))
    for k, a in enumerate(one):
        b = one[k - 1]
        step = (b[0] - a[0], b[1] - a[1])
        place = lambda p: (p[0] - a[0]) * step[0] + (p[1] - a[1]) * step[1]  # noqa: E731, B023
        off = lambda p: (p[0] - a[0]) * step[1] - (p[1] - a[1]) * step[0]  # noqa: E731, B023
        for j, p in enumerate(other):
            q = other[j - 1]
            if off(p) == 0 == off(q):
                low, high = sorted((place(p), place(q)))
                if max(low, 0) < min(high, place(b)):
                    return True
    return False


def affine_count(cells):
    """Maximal connected open sets on which the last layer is affine: union-find over facets."""
    root = list(range(len(cells)))

    def find(i):
        while root[i] != i:
            i = root[i]
        return i

    by_map = defaultdict(list)
    for i, cell in enumerate(cells):
        by_map[tuple(cell.maps)].append(i)
    for same in by_map.values():
        for i, j in combinations(same, 2):
            if find(i) != find(j) and share_a_facet(cells[i].vertices, cells[j].vertices):
                root[find(i)] = find(j)
    return sum(root[i] == i for i in range(len(cells)))


# The same in any dimension: every cell is its exact vertices with the constraints they lie on. ----


def box(radius):
    """{vertex: tight constraints} of the box |u_j| < r_j."""
    sides = product(*(((-r, (j, 0)), (r, (j, 1))) for j, r in enumerate(radius)))
    return {tuple(x for x, _ in corner): frozenset(c for _, c in corner) for corner in sides}


def polytope_halves(cell, affine, name):
    """Both sides of a polytope, or itself alone: double description."""
    value = {v: at(affine, v) for v in cell}
    if not min(value.values()) < 0 < max(value.values()):
        return [cell]
    cut = {v: tight | {name} for v, tight in cell.items() if value[v] == 0}
    for a, b in combinations(cell, 2):
        common = cell[a] & cell[b]
        if value[a] * value[b] < 0 and not any(
            common <= tight for v, tight in cell.items() if v not in (a, b)
        ):
            t = value[a] / (value[a] - value[b])
            cut[tuple(x + t * (y - x) for x, y in zip(a, b, strict=True))] = common | {name}
    return [{**{v: t for v, t in cell.items() if s * value[v] > 0}, **cut} for s in (1, -1)]


def window_polytopes(layers, center, radius, basis=None):
    """After every layer with an activation, the cells of an open window of any dimension; their
    ``vertices`` are dictionaries, in no order. Layers as for ``window_cells``, without maxima."""
    center = fractions(center)
    columns = fractions(np.eye(len(center)) if basis is None else basis)
    k = len(columns[0])
    start = [(tuple(g), c) for g, c in zip(columns, center, strict=True)]
    cells = [Cell(box(fractions(np.broadcast_to(radius, (k,)))), start, ())]
    stages = []
    for weights, bias, how in layers:
        weights, bias, new = fractions(weights), fractions(bias), []
        breaks, pieces = PIECES[how] if how else ((), [(1, 0)])
        for cell in cells:
            maps = [combination(w, b, cell.maps) for w, b in zip(weights, bias, strict=True)]
            parts = [cell.vertices]
            for i, (g, c) in enumerate(maps):
                for j, t in enumerate(breaks):
                    name = (len(stages), i, j)
                    parts = [h for p in parts for h in polytope_halves(p, (g, c - t), name)]
            for part in parts:
                signs = [centroid_signs(list(part), [(g, c - t) for t in breaks]) for g, c in maps]
                after = []
                for (g, c), own in zip(maps, signs, strict=True):
                    slope, constant = pieces[sum(s > 0 for s in own)]
                    after.append((tuple(slope * x for x in g), slope * c + constant))
                pattern = (*cell.pattern, tuple(signs)) if how else cell.pattern
                new.append(Cell(part, after, pattern))
        cells = new
        if how:
            stages.append(cells)
    return [*stages[:-1], cells]


def rank(rows):
    """Of a list of rows of fractions."""
    rows, found = [list(r) for r in rows], 0
    for j in range(len(rows[0]) if rows else 0):
        pivot = next((r for r in rows[found:] if r[j]), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        rows.insert(found, pivot)
        for r in rows[found + 1 :]:
            t = r[j] / pivot[j]
            r[:] = [x - t * y for x, y in zip(r, pivot, strict=True)]
        found += 1
    return found


def touching_pairs(cells):
    """Pairs of polytopes with a facet in common: k vertices that span a hyperplane."""
    pairs = []
    for i, j in combinations(range(len(cells)), 2):
        common = list(cells[i].vertices.keys() & cells[j].vertices.keys())
        k = len(next(iter(cells[i].vertices)))
        if len(common) >= k:
            edges = [[x - y for x, y in zip(v, common[0], strict=True)] for v in common[1:]]
            if rank(edges) == k - 1:
                pairs.append((i, j))
    return pairs

"""Slow, plain ways to get the package's numbers. They share no code with it."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

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


def count_cells_by_linear_programs(slopes, values, radius):
    """The same count from one linear program per sign vector, all 2^m of them (floats)."""
    slopes, values, radius = map(np.asarray, (slopes, values, radius))
    size = np.abs(slopes).max(axis=1)
    slopes, values = slopes / size[:, None], values / size
    count = 0
    for signs in product((1.0, -1.0), repeat=len(values)):
        s = np.array(signs)
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

"""Points where more than k hyperplanes of the first stage meet, as around a batch centroid.

If every k of the q hyperplanes through an apex are independent (else a vertex elsewhere shows it),

    |mu(apex)| = C(q - 1, k - 1)

is what it adds to the number of cells, and it is the lowest vertex of as many of them. Its edges
lead both ways along the lines on which k - 1 of the hyperplanes meet; the side of another
hyperplane to which a line leads is the sign of a determinant of normals.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from jaxregions import exact
from jaxregions.engines.points import U, point, values
from jaxregions.engines.skeleton import Layer, Part

__all__ = ["MOST", "added", "rays"]

MOST = 1 << 21  # determinants of one apex


def added(hyperplanes: int, k: int) -> int:
    """|mu| of a point on this many hyperplanes, every k of them independent."""
    return comb(hyperplanes - 1, k - 1)


def rays(layer: Layer, part: Part, row: int, through: list[int]) -> np.ndarray | None:
    """(2 C(q, k - 1),) the hashes of the sign vectors of the edges at an apex.

    None if some k of the hyperplanes are dependent.

    Args:
      row: the apex among the vertices of a part whose hashes cover the window's sides and ``new``.
      through: the q > k switching values that vanish there, ascending.
    """
    words, k, q = layer.words, layer.sides // 2, len(through)
    number = layer.number + np.array(through)
    zero, minus, plus = words.zero[number], words.minus[number], words.plus[number]
    own = np.isin(through, part.new[row])
    key = part.key[row] ^ np.bitwise_xor.reduce(zero[~own], initial=0)
    side = _orientations(_normals(layer, int(part.window[row]), through))
    if not side.all():
        return None
    lines = np.array(list(combinations(range(q), k - 1))).reshape(-1, k - 1)
    index = np.zeros((q,) * k, np.int8)
    index[tuple(np.array(list(combinations(range(q), k))).T)] = side
    keys = np.full((2, len(lines)), key)
    for u in range(q):
        off = np.flatnonzero((lines != u).all(axis=1))
        after = (lines[off] > u).sum(axis=1)
        full = np.sort(np.column_stack([lines[off], np.full(len(off), u)]), axis=1)
        up = index[tuple(full.T)] * (1 - 2 * (after % 2)) > 0
        keys[0, off] ^= zero[u] ^ np.where(up, plus[u], minus[u])
        keys[1, off] ^= zero[u] ^ np.where(up, minus[u], plus[u])
    return keys.ravel()


def _normals(layer: Layer, window: int, through: list[int]) -> np.ndarray:
    """(q, k) exact gradients of first-stage switching values, from the corners of the window."""
    ledger, k = layer.ledger, layer.sides // 2
    first = window << k
    base = values(ledger, first, layer.stage)[through]
    columns = []
    for axis in range(k):
        corner = first + (1 << (k - 1 - axis))
        step = point(ledger, corner)[axis] - point(ledger, first)[axis]
        columns.append((values(ledger, corner, layer.stage)[through] - base) / step)
    return np.stack(columns, axis=1)


def _orientations(normals: np.ndarray) -> np.ndarray:
    """Signs of the determinants of every k rows, in order of ``combinations``.

    Laplace expansion, the error of every minor bounded; in rationals where that is not enough.
    """
    k = normals.shape[1]
    near = np.array([[exact.rounded(v) for v in row] for row in normals])
    tiny = np.finfo(np.float64).tiny
    rows = np.array(list(combinations(range(len(normals)), k)))
    one = (np.ones(len(rows)), np.zeros(len(rows)))
    minors: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {(): one}
    for size in range(1, k + 1):
        for columns in combinations(range(k), size):
            total, scale, error = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
            for i, column in enumerate(columns):
                minor, bound = minors[columns[:i] + columns[i + 1 :]]
                entry = near[rows[:, size - 1], column]
                total += (-1) ** (size - 1 + i) * entry * minor
                scale += np.abs(entry) * np.abs(minor)
                error += np.abs(entry) * bound
            error = (error + (size + 4) * 2 * U * scale) * (1 + 16 * U) + tiny
            minors[columns] = total, error
    total, error = minors[tuple(range(k))]
    sign = np.sign(total).astype(np.int8)
    for i in np.flatnonzero(~(np.abs(total) > error)).tolist():
        found = _determinant(normals[rows[i]])
        sign[i] = (found > 0) - (found < 0)
    return sign


def _determinant(matrix: np.ndarray):
    if len(matrix) == 1:
        return matrix[0, 0]
    rest = np.delete(matrix, 0, axis=0)
    return sum(
        (-1) ** j * matrix[0, j] * _determinant(np.delete(rest, j, axis=1))
        for j in range(len(matrix))
    )

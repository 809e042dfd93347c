"""Many small margin programs at once, by the dual simplex method on arrays.

    max t  subject to  slope_i . v + value_i >= t  for every row i,  |v_j| + t <= 1.

The method starts from opposite faces of the box; it keeps k + 1 rows with multipliers y >= 0 whose
sum is 1, so that t <= sum y_i value_i, until that bound is negative or the rows' common point
satisfies all others. Answers are proposals: what they prove is for the caller to check.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Margins", "solve_margins"]

_CLEAR = 2.0**-40  # smaller bounds are followed to the end
_SLACK = 2.0**-46  # violations that rounding explains
_PIVOT = 2.0**-36
_ENTRIES = 1 << 19  # of rows in one pass


class Margins(NamedTuple):
    """margin (T,), point (T, k), weight (T, R); solved (T,): False where the method gave up."""

    margin: np.ndarray
    point: np.ndarray
    weight: np.ndarray
    solved: np.ndarray


def solve_margins(slope: np.ndarray, value: np.ndarray) -> Margins:
    """The programs with rows slope (T, R, k), value (T, R), of size about 1."""
    count, rows, k = slope.shape
    out = Margins(
        np.zeros(count), np.zeros((count, k)), np.zeros((count, rows)), np.zeros(count, bool)
    )
    step = max(1, _ENTRIES // (rows * k))
    for start in range(0, count, step):
        part = slice(start, start + step)
        _solve(slope[part], value[part], *(column[part] for column in out))
    return out


def _solve(slope, value, margin, point, weight, solved) -> None:
    count, rows, k = slope.shape
    inverse = np.tile(_first_inverse(k), (count, 1, 1))
    basis = np.tile([rows + k, *range(rows, rows + k)], (count, 1))
    y = -inverse[:, k]
    vertex = -inverse.sum(axis=2)  # all values are 1
    at = np.arange(count)
    for _ in range(40 + 12 * k):
        v, t = vertex[:, :k], vertex[:, k:]
        gap = np.concatenate(
            [np.matmul(slope, v[:, :, None])[:, :, 0] + value - t, 1 - t - v, 1 - t + v], axis=1
        )
        enters = np.argmin(gap, axis=1)
        here = np.arange(len(at))
        worst = gap[here, enters]
        over = (t[:, 0] < -_CLEAR) | (worst >= -_SLACK)
        if over.any():
            done = at[over]
            margin[done], point[done], solved[done] = t[over, 0], v[over], True
            owner, place = np.nonzero((basis[over] < rows) & (y[over] > 0))
            weight[done[owner], basis[over][owner, place]] = y[over][owner, place]
            go = ~over
            if not go.any():
                return
            at, inverse, basis, y, vertex = at[go], inverse[go], basis[go], y[go], vertex[go]
            slope, value, enters, worst = slope[go], value[go], enters[go], worst[go]
            here = np.arange(len(at))
        row = np.empty((len(at), k + 1))
        row[:, k] = -1.0
        box = enters >= rows
        row[:, :k] = slope[here, np.where(box, 0, enters)]
        if box.any():
            face = enters[box] - rows
            row[box, :k] = 0.0
            row[box, face % k] = np.where(face < k, -1.0, 1.0)
        share = np.matmul(row[:, None], inverse)[:, 0]
        with np.errstate(all="ignore"):
            ratio = np.where(share > _PIVOT, np.maximum(y, 0.0) / share, np.inf)
        leaves = np.argmin(ratio, axis=1)
        length = ratio[here, leaves]
        stuck = ~np.isfinite(length)
        if stuck.any():
            go = ~stuck
            at, inverse, basis, y, vertex = at[go], inverse[go], basis[go], y[go], vertex[go]
            slope, value, enters, worst = slope[go], value[go], enters[go], worst[go]
            share, leaves, length = share[go], leaves[go], length[go]
            here = np.arange(len(at))
            if not len(at):
                return
        y = y - length[:, None] * share
        y[here, leaves] = length
        pivot = share[here, leaves]
        column = inverse[here, :, leaves] / pivot[:, None]
        vertex = vertex - worst[:, None] * column
        share[here, leaves] -= 1.0
        inverse -= column[:, :, None] * share[:, None, :]
        basis[here, leaves] = enters


def _first_inverse(k: int) -> np.ndarray:
    """Of the rows (e_0, -1), (-e_0, -1), (-e_1, -1), ..., (-e_{k-1}, -1)."""
    inverse = np.zeros((k + 1, k + 1))
    inverse[0, :2] = 0.5, -0.5
    inverse[k, :2] = -0.5
    for j in range(1, k):
        inverse[j, :2] = 0.5
        inverse[j, j + 1] = -1.0
    return inverse

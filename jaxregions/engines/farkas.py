"""Whether strict inequalities have a common solution in an open box, decided in rationals.

The dual simplex method on

    max t  subject to  E (u, t) + q >= 0,    E = [slope, -1; -I, -1; I, -1],  q = (value, r, r),

whose bases are k + 1 rows. It starts from opposite faces of the box, keeps multipliers y >= 0 with
y E = -(0, ..., 0, 1), and ends when the bound t <= y q is not positive (there is no solution, and y
proves it), or when the basis satisfies all rows at t > 0 (u is a solution).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxregions import exact

__all__ = ["Decision", "decide"]

_GREEDY = 64  # pivots that take the most violated row; afterwards the first (no cycles)


class Decision(NamedTuple):
    """point: (k,) rationals inside, or None: empty, with the multipliers of the rows.

    weight: {row: rational > 0}; with them the rows sum to an affine function that is nowhere
    positive in the box.
    """

    point: np.ndarray | None
    weight: dict[int, object]


def decide(
    slope: np.ndarray,
    value: np.ndarray,
    radius: np.ndarray,
    pause: Callable[[], None] = lambda: None,
) -> Decision:
    """Whether {u : slope u + value > 0, |u_j| < radius_j} is empty.

    Args:
      slope, value, radius: (M, k), (M,), (k,) object arrays of rationals.
      pause: called before every pivot; what it raises ends it.
    """
    rows, k = slope.shape
    one, zero = exact.rational(1.0), exact.rational(0.0)
    matrix = np.full((rows + 2 * k, k + 1), zero, object)
    matrix[:rows, :k] = slope
    matrix[:, k] = -one
    for j in range(k):
        matrix[rows + j, j], matrix[rows + k + j, j] = -one, one
    right = np.concatenate([value, radius, radius])
    basis = [rows + k, *range(rows, rows + k)]
    inverse = np.full((k + 1, k + 1), zero, object)
    half = one / 2
    # Rows (e_0, -1), (-e_0, -1), (-e_j, -1): t = -(first + second) / 2 and so on.
    inverse[0, 0], inverse[0, 1] = half, -half
    inverse[k, 0] = inverse[k, 1] = -half
    for j in range(1, k):
        inverse[j, 0] = inverse[j, 1] = half
        inverse[j, j + 1] = -one
    weight = -inverse[k]
    for pivot in range(1 << 20):
        pause()
        vertex = -(inverse @ right[basis])
        if vertex[k] <= 0:
            chosen = zip(basis, weight, strict=True)
            return Decision(None, {b: y for b, y in chosen if b < rows and y > 0})
        gap = matrix @ vertex + right
        bad = np.flatnonzero(gap < 0)
        if not len(bad):
            return Decision(vertex[:k], {})
        enters = int(bad[0])
        if pivot < _GREEDY:
            enters = int(min(bad, key=lambda row: gap[row]))
        share = matrix[enters] @ inverse
        ratios = [
            (y / w, b, i)
            for i, (y, w, b) in enumerate(zip(weight, share, basis, strict=True))
            if w > 0
        ]
        step, _, leaves = min(ratios)
        weight = weight - step * share
        weight[leaves] = step
        change = share.copy()
        change[leaves] = change[leaves] - one
        inverse = inverse - np.multiply.outer(inverse[:, leaves] / share[leaves], change)
        basis[leaves] = enters
    raise RuntimeError("the simplex method did not end")

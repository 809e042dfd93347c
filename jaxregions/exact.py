"""Ground floor of exactness: rounding-error bounds, ball arithmetic, rationals.

A float decision counts only when it is proven: either its ball (midpoint and radius that encloses
the exact value) excludes zero, or it is made again in rational arithmetic on the stored floats.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxregions._records import record

try:
    from flint import fmpq as _fmpq
    from flint import fmpq_mat as _fmpq_mat
except ImportError:  # GPU images often lack python-flint; fractions answers the same, slower
    _fmpq = _fmpq_mat = None

__all__ = [
    "Ball",
    "ball_max",
    "ball_min",
    "certainly_less",
    "compare",
    "gamma",
    "key",
    "quotient",
    "rank",
    "rational",
    "rational_backend",
    "rationals",
    "rounded",
    "solve",
    "unit_roundoff",
]


def unit_roundoff(dtype: Any) -> float:
    """u: the largest relative error of one correctly rounded operation (2^-24, 2^-53)."""
    return float(np.finfo(dtype).eps) / 2


def gamma(n: int, dtype: Any) -> float:
    """gamma_n = n u / (1 - n u): relative error bound of n roundings in any order (Higham 2002)."""
    u = unit_roundoff(dtype)
    if n * u >= 0.5:
        raise ValueError(f"expected n u < 1/2 for a rounding bound, received n = {n}, u = {u}")
    return n * u / (1 - n * u)


def rational_backend() -> str:
    """Which arithmetic decides ties: 'python-flint' or 'fractions'."""
    return "fractions" if _fmpq is None else "python-flint"


def rational(x: Any) -> Any:
    """The exact rational that a finite float (or NumPy scalar) is."""
    return quotient(*float(x).as_integer_ratio())


def quotient(numerator: int, denominator: int) -> Any:
    """The exact rational of two whole numbers."""
    make: Any = Fraction if _fmpq is None else _fmpq
    return make(numerator, denominator)


def rationals(array: Any) -> np.ndarray:
    """A float array as an object array of exact rationals; ``@``, ``+``, ``*`` work on it."""
    array = np.asarray(array, np.float64)
    out = np.empty(array.shape, object)
    out.ravel()[:] = [rational(x) for x in array.ravel().tolist()]
    return out


def compare(a: Any, b: Any) -> int:
    """The sign of a - b for exact rationals."""
    return (a > b) - (a < b)


def key(x: Any) -> tuple[int, int]:
    """(numerator, denominator) in lowest terms: hashable, equal exactly for equal rationals."""
    return (
        (int(x.numerator), int(x.denominator)) if isinstance(x, Fraction) else (int(x.p), int(x.q))
    )


def rounded(x: Any) -> float:
    """The nearest float64 of an exact rational, infinite beyond the largest."""
    numerator, denominator = key(x)
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


def solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """x with matrix x = right, in rationals; matrix (k, k) non-singular (ValueError otherwise)."""
    rows = np.concatenate([matrix, right[:, None]], axis=1)
    for j in range(len(rows)):
        pivot = next((i for i in range(j, len(rows)) if rows[i, j] != 0), None)
        if pivot is None:
            raise ValueError("expected a non-singular matrix, received a singular one")
        rows[[j, pivot]] = rows[[pivot, j]]
        rows[j] = rows[j] / rows[j, j]
        for i in range(len(rows)):
            if i != j:
                rows[i] = rows[i] - rows[i, j] * rows[j]
    return rows[:, -1]


def rank(matrix: np.ndarray) -> int:
    """The rank of an (m, n) object array of rationals."""
    if _fmpq_mat is not None:
        m, n = matrix.shape
        return int(_fmpq_mat(m, n, matrix.ravel().tolist()).rank())
    rows, found = matrix.copy(), 0
    for column in rows.T:
        pivots = [i for i in range(found, len(rows)) if column[i] != 0]
        if pivots:
            rows[[found, pivots[0]]] = rows[[pivots[0], found]]
            below = rows[found + 1 :]
            factor = column[found + 1 :] / column[found]
            below -= factor[:, None] * rows[found]
            found += 1
    return found


_U = unit_roundoff(np.float64)
# Products below the normal range round with an absolute error, and XLA flushes subnormal operands
# and results to zero.
_SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)
_TINY = 1e-300


@record
class Ball:
    """Enclosures: the exact value differs from ``mid`` by at most ``rad``; float64, elementwise.

    Radii are inflated past their own rounding, so every operation is rigorous with or without
    fused multiply-add, in any evaluation order.
    """

    mid: Any
    rad: Any

    @staticmethod
    def exact(x) -> Ball:
        """The ball of a stored number; not a point where devices read subnormal numbers as zero."""
        return Ball(x, jnp.where(abs(x) < _SMALLEST_NORMAL, _TINY, 0.0))

    def __getitem__(self, index) -> Ball:
        return Ball(self.mid[index], self.rad[index])

    def __neg__(self) -> Ball:
        return Ball(-self.mid, self.rad)

    def __add__(self, other: Ball) -> Ball:
        return _rounded(self.mid + other.mid, self.rad + other.rad)

    def __sub__(self, other: Ball) -> Ball:
        return _rounded(self.mid - other.mid, self.rad + other.rad)

    def __mul__(self, other: Ball) -> Ball:
        spread = abs(self.mid) * other.rad + self.rad * (abs(other.mid) + other.rad)
        return _rounded(self.mid * other.mid, spread)

    def __truediv__(self, other: Ball) -> Ball:
        """Infinite radius where the divisor may be zero."""
        margin = abs(other.mid) - other.rad * (1 + 4 * _U)
        safe = margin > 0
        mid = self.mid / jnp.where(other.mid == 0, 1.0, other.mid)
        spread = (self.rad + abs(mid) * other.rad + _TINY) / jnp.where(safe, margin, 1.0)
        return _rounded(mid, jnp.where(safe, spread, jnp.inf))

    def nonzero(self):
        """Whether the exact value is proven to differ from zero."""
        return abs(self.mid) > self.rad


def _rounded(mid, spread) -> Ball:
    return Ball(mid, spread * (1 + 8 * _U) + abs(mid) * (2 * _U) + _TINY)


def certainly_less(a: Ball, b: Ball):
    """Whether a < b is proven; False also for NaN."""
    gap = b.mid - a.mid
    return gap * (1 - 4 * _U) > (a.rad + b.rad) * (1 + 4 * _U)


def ball_max(a: Ball, axis: int) -> Ball:
    """Enclosure of the largest entry along an axis."""
    return Ball(jnp.max(a.mid, axis), jnp.max(a.rad, axis))


def ball_min(a: Ball, axis: int) -> Ball:
    """Enclosure of the smallest entry along an axis."""
    return Ball(jnp.min(a.mid, axis), jnp.max(a.rad, axis))

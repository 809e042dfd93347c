"""Arrays of integers over one common denominator: exact arithmetic without a gcd per operation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxregions import exact

__all__ = [
    "Infinity",
    "Quotients",
    "added",
    "aligned",
    "common",
    "divided",
    "multiplied",
    "negative",
    "product",
    "quotients",
    "ratio",
    "rationals",
]


class Quotients(NamedTuple):
    """The rationals top / bottom, for several points at once.

    top: (rows, *shape) object array of Python ints, or ``Infinity``; a constant has one row.
    bottom: a positive int, shared by all entries.
    """

    top: np.ndarray
    bottom: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.top.shape[1:]


@functools.total_ordering
class Infinity:
    """Plus or minus infinity among integers of any size; a float one cannot be scaled by them."""

    def __init__(self, sign: int):
        self.sign = sign

    def __repr__(self):
        return f"Infinity({self.sign})"

    def __eq__(self, other):
        return isinstance(other, Infinity) and self.sign == other.sign

    def __hash__(self):
        return hash((Infinity, self.sign))

    def __lt__(self, other):
        return self.sign < (other.sign if isinstance(other, Infinity) else 0)

    def __neg__(self):
        return Infinity(-self.sign)

    def __abs__(self):
        return Infinity(1)

    def __add__(self, other):
        if isinstance(other, Infinity) and other.sign != self.sign:
            raise ArithmeticError("infinity minus infinity is not a number")
        return self

    __radd__ = __add__

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    def __mul__(self, other):
        sign = self.sign * ((other > 0) - (other < 0))
        if not sign:
            raise ArithmeticError("zero times infinity is not a number")
        return Infinity(sign)

    __rmul__ = __mul__


# In and out --------------------------------------------------------------------------------------


def ratio(value: Any) -> tuple[Any, int]:
    """(numerator, positive denominator) of an int, float or rational; of infinity (Infinity, 1)."""
    if isinstance(value, float) and math.isinf(value):
        return Infinity(1 if value > 0 else -1), 1
    if isinstance(value, int | np.integer | np.bool_):
        return int(value), 1
    return value.as_integer_ratio() if isinstance(value, float) else exact.key(value)


def quotients(array: Any) -> Quotients:
    """Numbers or rationals, the first axis being the rows."""
    array = np.asarray(array)
    top = np.empty(array.shape, object)
    if array.dtype.kind in "biu":
        top.ravel()[:] = [int(v) for v in array.ravel().tolist()]
        return Quotients(top, 1)
    values = array if array.dtype == object else array.astype(np.float64)
    pairs = [ratio(v) for v in values.ravel().tolist()]
    bottom = math.lcm(*{b for _, b in pairs})
    top.ravel()[:] = [a * (bottom // b) for a, b in pairs]
    return Quotients(top, bottom)


def rationals(values: Quotients) -> np.ndarray:
    """Exact rationals in an object array of shape (rows, *shape).

    Raises:
      ValueError: an infinite entry.
    """
    entries = values.top.ravel().tolist()
    if any(isinstance(v, Infinity) for v in entries):
        raise ValueError("expected finite values, received infinity")
    one, out = exact.rational(1.0), np.empty(values.top.shape, object)
    out.ravel()[:] = [one * v / values.bottom for v in entries]
    return out


# Arithmetic --------------------------------------------------------------------------------------


def aligned(values: Quotients, ndim: int) -> Quotients:
    """With axes of length 1 behind the rows, so that a row has ndim axes."""
    rows, *shape = values.top.shape
    return Quotients(values.top.reshape(rows, *[1] * (ndim - len(shape)), *shape), values.bottom)


def common(values: Sequence[Quotients]) -> tuple[list[np.ndarray], int]:
    """The numerators over one denominator, and that denominator."""
    bottom = math.lcm(*(v.bottom for v in values))
    tops = [v.top if v.bottom == bottom else v.top * (bottom // v.bottom) for v in values]
    return tops, bottom


def added(a: Quotients, b: Quotients) -> Quotients:
    (p, q), bottom = common((a, b))
    return Quotients(p + q, bottom)


def negative(a: Quotients) -> Quotients:
    return Quotients(-a.top, a.bottom)


def multiplied(a: Quotients, b: Quotients) -> Quotients:
    return Quotients(a.top * b.top, a.bottom * b.bottom)


def divided(a: Quotients, b: Quotients) -> Quotients:
    """a / b.

    Raises:
      ValueError: a divisor that is zero or infinite.
    """
    divisors = b.top.ravel().tolist()
    if any(isinstance(v, Infinity) or v == 0 for v in divisors):
        raise ValueError("expected divisors that are finite and not zero")
    multiple = math.lcm(*set(divisors))
    factors = np.empty(b.top.shape, object)
    factors.ravel()[:] = [multiple // v * b.bottom for v in divisors]
    return Quotients(a.top * factors, a.bottom * multiple)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., M, K) times (..., K, N), integers.

    What is multiplied by zeros only, such as what relu turned off, is left out.
    """
    if b.size != b.shape[-2] * b.shape[-1]:
        return np.matmul(a, b)
    left, right = a.reshape(-1, a.shape[-1]), b.reshape(b.shape[-2:])
    small = left if left.size <= right.size else right.T
    used = (small != 0).any(axis=0)
    out = left[:, used] @ right[used] if used.any() else np.zeros((len(left), b.shape[-1]), object)
    ndim = max(a.ndim, b.ndim)
    return out.reshape(*[1] * (ndim - a.ndim), *a.shape[:-1], b.shape[-1])

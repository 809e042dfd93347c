"""Hyperplanes in centred form and the exact criterion for when one cuts a window."""

from __future__ import annotations

import numpy as np

from jaxregions._records import as_array, is_traced, record, require_finite

__all__ = ["Hyperplanes"]


@record
class Hyperplanes:
    """Parallel families {x : w_i . (x - p) = o_ik}, i = 1..n units, k = 1..K offsets each.

    The centred form keeps coincidence exact: all members with offset exactly 0 share the point p.
    An offset of +inf is a hyperplane at infinity: the unit has none (BatchNorm with gamma = 0, a
    zero normal); it meets and refines nothing. A normal of exactly zero is never a hyperplane
    either. The stored floats are the exact hyperplanes.

    Args:
      normal: (..., n, d).
      point: (..., d), the point p that the offsets are measured from.
      offset: (..., n, K), in units of |w| times input units.

    Raises:
      ValueError: shapes that do not fit, NaN, an infinite normal or point, an offset of -inf.

    Source: README, "The mathematics", recentring.
    """

    normal: np.ndarray
    point: np.ndarray
    offset: np.ndarray

    def __init__(self, normal, point, offset):
        normal, point = as_array(normal, "normal"), as_array(point, "point")
        offset = as_array(offset, "offset")
        if normal.ndim < 2 or point.ndim < 1 or offset.ndim < 2:
            raise ValueError(
                "expected normal (..., n, d), point (..., d) and offset (..., n, K), received "
                f"{normal.shape}, {point.shape} and {offset.shape}"
            )
        *lead, n, d = normal.shape
        if point.shape != (*lead, d) or offset.shape[:-1] != (*lead, n):
            raise ValueError(
                f"expected point {(*lead, d)} and offset {(*lead, n, 'K')} for a normal of shape "
                f"{normal.shape}, received {point.shape} and {offset.shape}"
            )
        require_finite(normal, "normal")
        require_finite(point, "point")
        if not is_traced(offset) and np.isneginf(np.asarray(offset)).any():
            raise ValueError("offset: expected finite numbers or +inf (no hyperplane), received -inf")
        for name, value in (("normal", normal), ("point", point), ("offset", offset)):
            object.__setattr__(self, name, value)

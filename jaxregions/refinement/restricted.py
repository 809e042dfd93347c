"""One draw's hyperplanes in two-dimensional slices, as lines known to a few units of rounding.

Hyperplane {x : w . (x - p) = o} meets the slice {a + B (s + u)} in the line

    {u : (B'w) . u + w . (a - p) + (B'w) . s - o = 0}.

|B'w| is about sqrt(2 / d) |w| and often much less, so that sums of d terms in float64 would lose
what crossings are compared by. Both factors of a product are split instead, x = a + r with an
integer a of so few bits that sums of the products a b are exact in any order:

    x y = a b + (a s + r y),   y = b + s.

Source of the splitting: K. Ozaki, T. Ogita, S. Oishi, S. Rump, Error-free transformations of matrix
multiplication (2012).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxregions import exact
from jaxregions.refinement.placed import Own, Placed, in_slice, power_above, refine, size
from jaxregions.windows import Window

__all__ = ["Restricted", "place_slices", "products", "restricted"]

U, TINY = exact.unit_roundoff(np.float64), np.finfo(np.float64).tiny
_LEAST = 2.0**-900  # of a scale: far from where numbers lose digits


class Restricted(NamedTuple):
    """Lines g . u + h = 0 in the coordinates u of G slices, and errors of |g| and of h.

    slope (G or 1, m, 2), value (G, m), inf for no line, and their errors.
    """

    slope: Any
    value: Any
    slope_error: Any
    value_error: Any


def restricted(own: Own, planes: tuple[Any, Any, Any], windows: Window) -> Restricted:
    """One draw's hyperplanes in the slices of G windows of dimension 2, u from their centres."""
    normal, point, offset = planes
    assert windows.basis is not None
    anchor = windows.center if windows.anchor is None else windows.anchor
    groups, d = anchor.shape
    high, low = _difference(anchor, point)
    basis = windows.basis.reshape(-1, d, 2)
    shared = len(basis)
    columns = jnp.concatenate([jnp.moveaxis(basis, 1, 0).reshape(d, -1), high.T], 1)
    rest = jnp.concatenate([jnp.zeros((d, 2 * shared)), low.T], 1)
    parts = products(normal, columns, rest)
    if offset.shape[1] > 1:
        parts = [jnp.repeat(p, offset.shape[1], axis=0) for p in parts]
    whole, little, error = (p.T for p in parts)
    slopes = whole[: 2 * shared] + little[: 2 * shared]
    slope_errors = error[: 2 * shared] + U * abs(slopes)
    gx, gy = slopes[::2], slopes[1::2]
    ex, ey = slope_errors[::2], slope_errors[1::2]
    there = jnp.isfinite(own.offset)
    first = whole[2 * shared :] - jnp.where(there, own.offset, 0)
    value = first + little[2 * shared :]
    wrong = error[2 * shared :] + U * (abs(first) + abs(value))
    if windows.shift is not None:
        sx, sy = windows.shift[:, :1], windows.shift[:, 1:]
        value = value + (gx * sx + gy * sy)
        wrong = wrong + (ex + 3 * U * abs(gx)) * abs(sx) + (ey + 3 * U * abs(gy)) * abs(sy)
        wrong = wrong + U * abs(value)
    value = jnp.broadcast_to(value, (groups, value.shape[1]))
    return Restricted(
        jnp.stack([gx, gy], -1),
        jnp.where(there, value, np.inf),
        1.01 * (ex + ey) + TINY,
        jnp.where(there, 1.01 * wrong + TINY, 0),
    )


def place_slices(own: Own, planes: tuple[Any, Any, Any], windows: Window) -> Placed:
    """``place`` of slices of dimension 2, with bounds good enough for crossings."""
    lines, radius = restricted(own, planes, windows), windows.radii()
    reach = abs(lines.slope[..., 0]) * radius[:, :1] + abs(lines.slope[..., 1]) * radius[:, 1:]
    height = abs(lines.value)
    error = 1.01 * (lines.value_error + lines.slope_error * size(radius)[:, None]) + 8 * U * reach
    error = error + 4 * U * jnp.where(jnp.isfinite(height), height, 0)
    hits = refine(reach - height, error)
    return Placed(*lines, radius, *hits, *in_slice(windows, planes[1]))


def products(vectors: Any, columns: Any, low: Any) -> list[Any]:
    """vectors (n, d) . (columns + low) (d, c) as whole + rest, off by ``error`` at most; (n, c).

    low: at most a rounding error of columns. error: with b bits of an integer, scales s and t,

        gamma_{2d + 16} 2^-b sqrt(d) / 2 (|v| t + s |c|),

    by Cauchy and Schwarz, as |x - a| <= 1/2 and |a| <= 2 |x|.
    """
    d = vectors.shape[1]
    bits = (53 - d.bit_length()) // 2
    scale = 2.0**bits
    left = jnp.maximum(power_above(jnp.max(abs(vectors), 1)), _LEAST)[:, None]
    right = jnp.maximum(power_above(jnp.max(abs(columns), 0)), _LEAST)
    x, y = vectors * (scale / left), columns * (scale / right)
    a, b = jnp.round(x), jnp.round(y)
    whole = jnp.matmul(a, b, precision="highest")
    rest = jnp.matmul(a, (y - b) + low * (scale / right), precision="highest")
    rest = rest + jnp.matmul(x - a, y, precision="highest")
    rate = 1.01 * exact.gamma(2 * d + 16, np.float64) * math.sqrt(d) / 2
    error = rate * (jnp.sqrt(jnp.sum(x * x, 1))[:, None] + jnp.sqrt(jnp.sum(y * y, 0)))

    def back(value):  # powers of two one after the other, so that none of them loses digits
        return value * (left / scale) * (right / scale)

    return [back(whole), back(rest), back(error) + TINY]


def _difference(a: Any, b: Any) -> tuple[Any, Any]:
    """a - b as a float and its rounding error, exactly.

    Source: D. Knuth, The Art of Computer Programming 2, 4.2.2.
    """
    high = a - b
    back = high - a
    return high, (a - (high - back)) - (b + back)

"""Crossings of one draw's lines in two-dimensional windows, compared as 32-bit integers.

Line i is {y : g_i . y + h_i = 0} with |g_i| = 1, in coordinates in which all windows lie in the
unit disc. Its crossing with line j lies at -h_i g_i + t_ij (-g_i2, g_i1),

    t_ij = (h_j - h_i g_i . g_j) / (g_i2 g_j1 - g_i1 g_j2),

and a window is an interval of t on it. So a crossing is computed once for all windows. Row s of a
table of crossings holds those of i with i + s mod m: rows 1 to m / 2 have every pair once.

Every number is compared with a proven band about it; a draw that has one in doubt is left open.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact
from jaxregions.refinement.crossings import parallels, partners

__all__ = ["Chords", "chords", "count_inside", "intervals", "reached", "table", "triple_points"]

U = exact.unit_roundoff(np.float64)
_DISC = 1.0625  # parameters from here on are those of no crossing in the disc
_EDGE = 1.03125  # windows' intervals end here at the latest
_UNIT = 1e9  # of parameters as integers: all differences stay below 2^31
_DOUBT = 1.1  # stands for a parameter that is not known well enough
_RATE = 2.0**33  # |rate| over the error of both its terms, from where t is known to 0.13 units
_BLUR = 3.4e-9  # error of an interval's end: 3.4 units
# An end lies within 3.4 + 1 units (it is rounded to even ones), a parameter within 0.13 + 0.5.
_BAND = np.int32(6)
_SAME = np.int32(2)  # parameters of one point differ by no more
_OUTER = np.int32(1 << 16)


class Chords(NamedTuple):
    """Lines of one draw, (m,) each, all with unit normals.

    x, y, h: the line; over_x, over_y: 1 / its direction's components; start_x, start_y: h g over
    direction. zero: 1 for lines through the common point, whose crossings are
    counted elsewhere, else 0. blur (): error of the terms of a crossing; sure (): every line is
    known well enough.
    """

    x: Any
    y: Any
    h: Any
    over_x: Any
    over_y: Any
    start_x: Any
    start_y: Any
    zero: Any
    blur: Any
    sure: Any


def chords(slope: Any, value: Any, slope_error: Any, value_error: Any, zero: Any, slack: Any):
    """From lines slope . y + value = 0 and the errors of the slopes' lengths and of the values.

    Args:
      slope (m, 2), the others (m,), inf for the value of no line.
      slack: error of the coordinates of the windows' centres.
    """
    gx, gy = slope[:, 0], slope[:, 1]
    square = gx * gx + gy * gy
    inverse = 1 / jnp.sqrt(square)
    x, y, h = gx * inverse, gy * inverse, value * inverse
    tilt = 1.02 * slope_error * inverse + 8 * U  # a compiler's 1 / sqrt may be off by 2 u more
    shift = value_error * inverse
    known = (square > 2.0**-600) & (square < 2.0**600) & (tilt < 2.0**-6)
    gone = known & (abs(h) * (1 - tilt) - shift > _DISC)
    # However short g is: no quotient.
    longest = jnp.maximum(abs(gx), abs(gy)) + slope_error
    gone = gone | (abs(value) > 1.6 * longest + 1.01 * value_error)
    # With |h| < 1.2: the two terms of a crossing, the second one times |t| <= 1.1, are off by
    # 2 shift + 7.3 tilt + 21 u at most; an end of an interval by what
    # its coordinate is, over the direction's.
    wrong = 2 * shift + 7.5 * tilt + 21 * U
    end = slack + shift + 3.6 * tilt + 23 * U
    over_x, over_y = -1 / y, 1 / x
    worst = jnp.maximum(abs(over_x), abs(over_y))
    fine = known & (abs(h) < 1.2) & (end * worst < _BLUR)
    x, y, h = jnp.where(gone, 0.75, x), jnp.where(gone, 0.75, y), jnp.where(gone, 2.0**60, h)
    start = jnp.where(gone, 2.0**60, h * x * over_x), jnp.where(gone, 2.0**60, h * y * over_y)
    over = jnp.where(gone, 0, over_x), jnp.where(gone, 0, over_y)
    open_lines = jnp.sum((~gone & ~fine).astype(np.int32), dtype=np.int32)
    return Chords(
        x, y, h, *over, *start,
        zero=jnp.where(zero & ~gone, 1.0, 0.0),
        blur=jnp.max(jnp.where(gone, 0.0, wrong)),
        sure=open_lines == 0,
    )  # fmt: skip


def table(lines: Chords, unit: np.ndarray, rows: int) -> Any:
    """t_ij as integers, (rows, m), for j = i + 1 to i + rows mod m.

    Where no window is reached, a number beyond all of theirs, another one in every row.

    Args:
      unit: NumPy (m,); lines of one unit are parallel.
    """
    jx, jy, jh = (partners(array, rows) for array in (lines.x, lines.y, lines.h))
    rate = lines.y * jx - lines.x * jy
    level = jh - lines.h * (jx * lines.x + jy * lines.y)
    at, size_of_rate = level / rate, abs(rate)
    beyond = np.linspace(_DISC, _DISC + 2.0**-6, rows)[:, None]
    at = jnp.where(abs(at) < _DISC, at, beyond)
    least = _RATE * lines.blur
    doubt = ~(size_of_rate >= least) & ~(abs(level) > 2 * least)
    at = jnp.where(doubt, _DOUBT, at)
    # Lines through the common point cross there and only there, unless they may coincide.
    both = lines.zero + partners(lines.zero, rows) > 1.5
    at = jnp.where(both & (size_of_rate > 2 * lines.blur), beyond, at)
    never = parallels(unit, rows)
    if never.any():
        at = jnp.where(never, beyond, at)
    return _integers(at * _UNIT)


def intervals(lines: Chords, centre: Any, radius: Any) -> tuple[Any, Any]:
    """The windows (W, 2) on the lines: sums and differences of both ends, (W, m), integers."""
    ends = []
    for k, (over, start) in enumerate(
        ((lines.over_x, lines.start_x), (lines.over_y, lines.start_y))
    ):
        middle, half = centre[:, k, None] * over + start, radius[:, k, None] * abs(over)
        ends.append((middle - half, middle + half))
    # Both ends beyond the disc on one side leave less than nothing.
    past = _EDGE + 2.0**-6
    low = _least(_most(_most(ends[0][0], ends[1][0]), -_EDGE), past)
    high = _most(_least(_least(ends[0][1], ends[1][1]), _EDGE), -past)
    low, high = _integers(low * (_UNIT / 2)), _integers(high * (_UNIT / 2))
    return low + high, high - low


def reached(width: Any) -> Any:
    """Whether any line may refine any window, (): width of ``intervals``."""
    return jnp.any(width > -2 * _BAND)


def count_inside(at: Any, middle: Any, width: Any) -> tuple[Any, Any, Any]:
    """Of every window: lines that refine it, pairs that cross in it, whether both are proven; (W,).

    Args:
      at: ``table`` with at least m / 2 rows; of even m, half of row m / 2 counts.
      middle, width: ``intervals``.
    """
    size = middle.shape[-1]
    largest = functools.reduce(jnp.maximum, at)
    known = jnp.sum((largest > np.int32(1.09 * _UNIT)).astype(np.int32), dtype=np.int32) == 0
    rows = [at[s] for s in range(size // 2)]
    if size % 2 == 0:
        rows[-1] = jnp.where(np.arange(size) < size // 2, rows[-1], np.int32(_DISC * _UNIT))
    inner, outer = width - _BAND, width + _BAND
    words = jnp.zeros(middle.shape, np.int32)
    for row in rows:
        distance = abs(row - middle)
        words = words + jnp.where(distance < inner, np.int32(1), 0)
        words = words + jnp.where(distance < outer, _OUTER, 0)
    inside, perhaps = _halves(words)
    hits, likely = _halves(
        jnp.where(inner > 0, np.int32(1), 0) + jnp.where(outer >= 0, _OUTER, np.int32(0))
    )
    return hits, inside, (inside == perhaps) & (hits == likely) & known


def triple_points(at: Any) -> Any:
    """Whether two crossings on one line may coincide, ().

    Of three lines that meet in a point, numbered around a circle, two neighbours are the least
    apart; from the third one they are seen in rows not more than m / 3 apart.

    Args:
      at: ``table`` with m - 1 rows.
    """
    rows, size = at.shape
    twice = jnp.concatenate([at, at])
    least = jnp.full(at.shape, np.iinfo(np.int32).max, np.int32)
    for apart in range(1, size // 3 + 1):
        least = jnp.minimum(least, abs(twice[apart : apart + rows] - at))
    least = functools.reduce(jnp.minimum, least)
    return jnp.sum((least <= _SAME).astype(np.int32), dtype=np.int32) > 0


def _most(a: Any, b: Any) -> Any:
    return jnp.where(a > b, a, b)  # one instruction, as jnp.maximum is not: it keeps NaN


def _least(a: Any, b: Any) -> Any:
    return jnp.where(a < b, a, b)


def _integers(numbers: Any) -> Any:
    """Rounded, |x| < 2^31: the last digits of x plus 3 * 2^51."""
    bits = jax.lax.bitcast_convert_type(numbers + 3 * 2.0**51, np.int64)
    return bits.astype(np.int32)


def _halves(words: Any) -> tuple[Any, Any]:
    """The sums over lines of both halves of 32-bit words."""
    size = words.shape[-1]
    if size * size // 2 < 1 << 16:  # XLA would make the words twice for two sums
        total = jnp.sum(words, -1, dtype=np.int32).astype(np.uint32)
        return (total & 0xFFFF).astype(np.int32), (total >> 16).astype(np.int32)
    wide = words.astype(np.int64)
    total = jnp.sum((wide & 0xFFFF) + ((wide >> 16) << 32), -1)
    return total.astype(np.int32), (total >> 32).astype(np.int32)

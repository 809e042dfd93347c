"""Crossings of one draw's lines inside many two-dimensional windows, with proven bounds.

Line i is {y : g_i . y + h_i = 0}, in coordinates in which all windows lie in the unit disc. Its
crossing with line j lies at y = f_i + t_ij (-g_i2, g_i1), f_i its point nearest to the origin and

    t_ij = -(h_j + g_j . f_i) / (g_i1 g_j2 - g_i2 g_j1),

and a window is an interval of t on it. So a crossing is computed once for all windows and compared
once per window. Arrays of pairs are (row, i), one partner j of line i in every row: a loop over
rows is one contiguous operation on all lines.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact

__all__ = ["Lines", "count_crossings", "count_rounded", "rounded_intervals", "twins"]

_FAR = 8.0  # a parameter beyond every window: |t| <= 2 in the unit disc, as |g| >= 1/2
_OPEN = np.int32(1 << 16)  # in a word: a crossing of which it cannot be told
_UNIT = 2.0**28  # of parameters as integers: differences of |t| <= 5 stay below 2^31
_BLUR = 2.0**-30  # error of a parameter that is compared as an integer
_BAND = np.int32(4)  # units: that, with the errors of a middle and a half-length, and all rounding


class Lines(NamedTuple):
    """Lines of one draw, |g|_inf in [1/2, 1), and what their data may be wrong by.

    slope: (m, 2); value: (m,), |h| <= 3/2 for a line that is ``present``.
    slope_error, value_error: (m,), of the Euclidean length of g and of h.
    unit: NumPy (m,), lines of one unit are parallel; zero: (m,), lines through the common point,
    whose crossings are counted elsewhere.
    """

    slope: Any
    value: Any
    slope_error: Any
    value_error: Any
    present: Any
    zero: Any
    unit: np.ndarray


def count_crossings(lines: Lines, centre: Any, radius: Any, slack: Any, hit: Any, *, simple: bool):
    """Pairs of lines that cross inside each window (W,), and whether that is proven.

    Args:
      lines: one draw.
      centre, radius: (W, 2) windows in the unit disc; slack: (W,) error of a centre's coordinates.
      hit: (W, m) lines known to refine each window.
      simple: take it as known that no three lines meet in a point. Otherwise crossings on one line
        that are not proven distinct leave all windows open.
    """
    size = len(lines.unit)
    if size < 2:
        zeros = jnp.zeros(centre.shape[:1], np.int32)
        return zeros, zeros == 0
    place = _geometry(lines)
    found = _parameters(*place, 1.0, *_once(size))
    inside, decided = _inside_finely(*found, *_chords(*place, centre, radius, slack, hit))
    if not simple:
        decided = decided & ~_any_close(*_parameters(*place, 1.0, *_below(size)))
    return inside, decided


def rounded_intervals(lines: Lines, centre: Any, radius: Any, slack: Any, hit: Any):
    """Crossings (rows, m), and middles and half-lengths (W, m) of the windows' intervals: integers.

    For ``count_rounded``, which is faster than ``count_crossings`` and leaves more open. Arguments
    as there; at least two lines.
    """
    place = _geometry(lines)
    at, _ = _parameters(*place, _BLUR, *_once(len(lines.unit)))
    middle, half = _middles(*place, centre, radius, slack, hit)
    at = jnp.where(jnp.isnan(at) | jnp.isnan(half[0]), 5.0, jnp.clip(at, -3.0, 3.0))
    half = jnp.where(hit, half, -2.0)
    return tuple(map(_integers, (at, middle, half)))


def count_rounded(at: Any, middle: Any, half: Any) -> tuple[Any, Any]:
    """Crossings in every window's intervals, and whether each was told in or out; no triple points.

    32-bit integers, of which many are compared at once.
    """
    words = jnp.zeros(middle.shape, np.int32)
    for row in range(len(at)):
        words = words + _word(abs(at[row] - middle), half - _BAND, half + _BAND)
    inside, decided = _summed(words)
    return inside, decided & (jnp.max(at) < np.int32(4 * _UNIT))


def _geometry(lines: Lines):
    columns = lines.slope[:, 0], lines.slope[:, 1]
    return lines, columns, *_feet(lines, columns)


def _once(size: int):
    """Partners such that half the rows hold every pair once: (pick, NumPy partner numbers).

    Of partners s and s + half, line i takes one in row s: of two lines of one half the smaller has
    the larger as its partner, else i has s + half for s <= i, and i + half has s for s < i.
    """
    half = -(-size // 2)
    row, line = np.arange(half)[:, None], np.arange(size)
    low = np.where(line < half, row > line, row < line - half)
    partner = np.where(low, row, row + half)
    partner = np.where((partner < size) & (partner != line), partner, line)  # itself: none

    def pick(array):
        array = jnp.pad(array, (0, 2 * half - size))
        return jnp.where(low, array[:half, None], array[half:, None])

    return pick, partner


def _below(size: int):
    """All partners j > i of line i: in row j, as ``_once``."""
    row, line = np.arange(size)[:, None], np.arange(size)
    return (lambda array: array[:, None]), np.where(row > line, row, line)


def _integers(numbers: Any) -> Any:
    """|x| <= 5 in units of 2^-28, rounded: the last digits of x plus 3 * 2^51."""
    bits = jax.lax.bitcast_convert_type(numbers * _UNIT + 3 * 2.0**51, np.int64)
    return bits.astype(np.int32)


def _inside_finely(at: Any, error: Any, middle: Any, inner: Any, outer: Any) -> tuple[Any, Any]:
    """Crossings (rows, i) in every window's intervals, and whether each was told in or out."""
    words = jnp.zeros(middle.shape, np.int32)
    for row in range(len(at)):
        distance = abs(at[row] - middle)
        words = words + _word(distance, inner - error[row], outer + error[row])
    return _summed(words)


def _word(distance: Any, inner: Any, outer: Any) -> Any:
    """1 inside, 0 outside, else _OPEN; of NaN too."""
    return jnp.where(distance < inner, np.int32(1), jnp.where(distance >= outer, 0, _OPEN))


def _summed(words: Any) -> tuple[Any, Any]:
    """(W, m) -> how many inside, whether none is open: by one sum, or XLA makes the words twice."""
    lines = words.shape[-1]
    if lines * (lines - 1) // 2 < 1 << 16:  # both parts of the sum fit
        total = jnp.sum(words.astype(np.uint32), -1, dtype=np.uint32)
        return (total & np.uint32(0xFFFF)).astype(np.int32), total < np.uint32(1 << 16)
    wide = words.astype(np.int64)
    total = jnp.sum((wide & 0xFFFF) + ((wide >> 16) << 32), -1)
    return total.astype(np.int32), total < 2**32


def _feet(lines: Lines, columns: Any):
    """f_i, (2, m), and (m,) a bound on its error."""
    gx, gy = columns
    factor = -lines.value / (gx * gx + gy * gy)
    foot = factor * gx, factor * gy
    u = exact.unit_roundoff(lines.value.dtype)
    # |g| >= 1/2: a changed h moves the foot by 2 of it, a changed g by 4 |f| <= 12 of it.
    drift = 8 * u * (abs(foot[0]) + abs(foot[1]))
    return foot, drift + 2.1 * lines.value_error + 13 * lines.slope_error


def _parameters(
    lines: Lines, columns: Any, foot: Any, drift: Any, blur: float, pick: Any, partner: np.ndarray
) -> tuple[Any, Any]:
    """t_ij and its error, at most ``blur``, (rows, m): beyond 2.4 where no window is reached.

    NaN where it cannot be told that well. Written with |g| <= sqrt 2, |f| <= 3.
    """
    u = exact.unit_roundoff(lines.value.dtype)
    gx, gy = columns
    jx, jy, jh = pick(gx), pick(gy), pick(lines.value)
    rate, level = gx * jy - gy * jx, jh + jx * foot[0] + jy * foot[1]
    # The errors of the worst lines stand for all.
    own = 4 * u * (abs(foot[0]) + abs(foot[1])) + 1.5 * drift
    other = 4 * u * abs(lines.value) + lines.value_error + 3 * lines.slope_error
    level_error = 1.01 * (_most(own, lines) + _most(other, lines))
    rate_error = 2.02 * _most(4 * u + 1.5 * lines.slope_error, lines)
    size = abs(rate)
    apart = size - rate_error
    far = abs(level) - level_error > 2.5 * (size + rate_error)
    # Else |t| <= 2.5 and a bit; half the blur is for the quotient's own rounding.
    vague = apart < (2 / blur) * (level_error + 2.6 * rate_error)
    # One number per line says what concerns pairs: 3 absent, 1 through the common point, else 0.
    kind = jnp.where(lines.present, jnp.where(lines.zero, 1, 0), 3).astype(size.dtype)
    both = kind + pick(kind)
    never = lines.unit[partner] == lines.unit
    # Lines through the common point cross there and only there, unless they may coincide.
    skip = never | (both > 2) | ((both == 2) & (apart > 0))
    at = jnp.where(vague, jnp.where(far, _FAR, np.nan), -level / rate)
    error = 1.01 * (level_error + 2.6 * rate_error) / jnp.where(vague, 1, apart) + 16 * u
    return jnp.where(skip, _FAR, at), error


def _most(errors: Any, lines: Lines) -> Any:
    return jnp.max(jnp.where(lines.present, errors, 0))


def _middles(lines: Lines, columns: Any, foot, drift, centre, radius, slack, hit):
    """The interval of t of every line in every window, (W, m): middle, half-length, to ``_BLUR``.

    NaN for a line of which they are not known that well.
    """
    u = exact.unit_roundoff(lines.value.dtype)
    low, high, worst = -np.inf, np.inf, jnp.zeros_like(drift)
    for k, direction in enumerate((-columns[1], columns[0])):
        inverse = 1 / jnp.where(abs(direction) < u, u, direction)
        at, reach = (centre[:, k, None] - foot[k]) * inverse, radius[:, k, None] * abs(inverse)
        low, high = jnp.maximum(low, at - reach), jnp.minimum(high, at + reach)
        worst = jnp.maximum(worst, abs(inverse))
    error = worst * (drift + 4 * lines.slope_error + jnp.max(slack) + 96 * u)
    blind = lines.present & (error > _BLUR)
    middle, half = (low + high) / 2, (high - low) / 2
    return jnp.where(hit, middle, 0), jnp.where(blind, np.nan, half)


def _chords(lines: Lines, columns: Any, foot, drift, centre, radius, slack, hit):
    """The same as a middle and two half-lengths, whatever their errors.

    A parameter nearer to the middle than the inner half-length lies in the window for certain; one
    farther than the outer one does not. -inf where the line does not refine the window.
    """
    u = exact.unit_roundoff(lines.value.dtype)
    bounds = []
    for k, direction in enumerate((-columns[1], columns[0])):
        # Flatter directions move a coordinate by less than what rounding does anyway.
        inverse = 1 / jnp.where(abs(direction) < u, u, direction)
        at = (centre[:, k, None] - foot[k]) * inverse
        reach = radius[:, k, None] * abs(inverse)
        wrong = drift + 4 * lines.slope_error + slack[:, None] + 96 * u
        wrong = wrong * abs(inverse)
        bounds.append([(at, reach + sign * wrong) for sign in (-1, 0, 1)])
    low = [jnp.maximum(a - p, b - q) for (a, p), (b, q) in zip(*bounds, strict=True)]
    high = [jnp.minimum(a + p, b + q) for (a, p), (b, q) in zip(*bounds, strict=True)]
    middle = (low[1] + high[1]) / 2
    inner = jnp.minimum(middle - low[0], high[0] - middle)
    outer = jnp.maximum(middle - low[2], high[2] - middle)
    return (
        jnp.where(hit, middle, 0),
        jnp.where(hit, inner, -np.inf),
        jnp.where(hit, outer, -np.inf),
    )


def _any_close(at: Any, error: Any) -> Any:
    """Whether two crossings (rows) on one line i may coincide.

    Three lines i < j < k that meet in a point do so on line i.
    """
    rows = len(at)
    key = jnp.where(abs(at) - error < 2.5, at, np.nan)
    key, error = jnp.concatenate([key, key]), jnp.concatenate([error, error])
    close = jnp.zeros(at.shape, np.int32)
    for step in range(1, rows // 2 + 1):
        apart = abs(key[step : step + rows] - key[:rows])
        near = apart <= error[step : step + rows] + error[:rows]
        close = close + jnp.where(near, np.int32(1), np.int32(0))
    return jnp.sum(close, dtype=np.int32) > 0


def twins(slope: Any, slope_error: Any, unit: np.ndarray) -> Any:
    """Hyperplanes that may be parallel to one of another unit: bool (..., m), slope (..., m, k).

    sin^2 of the angle by its definition for k = 2, by Lagrange's identity beyond.
    """
    k = slope.shape[-1]
    u = exact.unit_roundoff(slope.dtype)
    size = jnp.sqrt(jnp.sum(slope * slope, -1))
    unsafe = slope_error > 2.0**-8 * size
    safe = jnp.where(unsafe | (size == 0), 1, size)
    direction = slope / safe[..., None]
    blur = slope_error / safe + (k + 8) * u
    both = blur[..., :, None] + blur[..., None, :]
    if k == 2:
        x, y = direction[..., 0], direction[..., 1]
        sine = x[..., :, None] * y[..., None, :] - y[..., :, None] * x[..., None, :]
        close = abs(sine) <= 4 * both
    else:
        cosine = jnp.einsum("...ik,...jk->...ij", direction, direction, precision="highest")
        close = 1 - cosine * cosine <= 8 * both
    close = close & (unit[:, None] != unit)
    return jnp.any(close, -1) | unsafe

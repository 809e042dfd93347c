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

import jax.numpy as jnp
import numpy as np

from jaxregions import exact

__all__ = ["Lines", "count_crossings", "twins"]

_FAR = 8.0  # a parameter beyond every window: |t| <= 2 in the unit disc, as |g| >= 1/2
_OPEN = np.int32(1 << 15)  # in a word: a crossing of which it cannot be told


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


def count_crossings(lines: Lines, centre: Any, radius: Any, slack: Any, hit: Any, simple: bool):
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
    foot, drift = _feet(lines)
    at, error = _parameters(lines, foot, drift, *_once(size))
    chords = _chords(lines, foot, drift, centre, radius, slack, hit)
    inside, decided = _inside(at, error, *chords)
    if not simple:
        decided = decided & ~_any_close(*_parameters(lines, foot, drift, *_below(size)))
    return inside, decided


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


def _inside(at: Any, error: Any, middle: Any, inner: Any, outer: Any) -> tuple[Any, Any]:
    """Crossings (rows, i) in every window's intervals, and whether each was told in or out."""
    words = jnp.zeros(middle.shape, np.int32)
    for row, wrong in zip(at, error, strict=True):
        distance = abs(row - middle)
        open_or_out = jnp.where(distance - wrong < outer, _OPEN, np.int32(0))
        words = words + jnp.where(distance + wrong < inner, np.int32(1), open_or_out)
    # A line has less than 2^15 partners; all lines may have more.
    inside = jnp.sum(words & (_OPEN - 1), -1, dtype=np.int32)
    return inside, jnp.all(words < _OPEN, -1)


def _feet(lines: Lines):
    """f_i, (2, m), and (m,) a bound on its error."""
    gx, gy = lines.slope[:, 0], lines.slope[:, 1]
    factor = -lines.value / (gx * gx + gy * gy)
    foot = jnp.stack([factor * gx, factor * gy])
    u = exact.unit_roundoff(lines.value.dtype)
    # |g| >= 1/2: a changed h moves the foot by 2 of it, a changed g by 4 |f| <= 12 of it.
    drift = 8 * u * (abs(foot[0]) + abs(foot[1]))
    return foot, drift + 2.1 * lines.value_error + 13 * lines.slope_error


def _parameters(lines: Lines, foot: Any, drift: Any, pick: Any, partner: np.ndarray):
    """t_ij and its error, (rows, m): _FAR where no crossing can lie in a window.

    Infinite error where it cannot be told. Written with |g| <= sqrt 2, |f| <= 3.
    """
    dtype = lines.value.dtype
    u = exact.unit_roundoff(dtype)
    gx, gy = lines.slope[:, 0], lines.slope[:, 1]
    jx, jy, jh = pick(gx), pick(gy), pick(lines.value)
    rate, level = gx * jy - gy * jx, jh + jx * foot[0] + jy * foot[1]
    own = 4 * u * (abs(foot[0]) + abs(foot[1])) + 1.5 * drift
    other = 4 * u * abs(lines.value) + lines.value_error + 3 * lines.slope_error
    turn = 4 * u + 1.5 * lines.slope_error
    level_error = own + pick(other)
    rate_error = turn + pick(turn)
    far = abs(level) - level_error > 2.5 * (abs(rate) + rate_error)
    margin = abs(rate) - rate_error
    safe = margin > 0
    inverse = 1 / jnp.where(safe, margin, 1)
    at = jnp.where(safe, -level / jnp.where(safe, rate, 1), 0)
    error = 1.01 * (level_error + abs(at) * rate_error) * inverse + 4 * u * abs(at)
    error = jnp.where(safe, error + np.finfo(dtype).tiny, np.inf)
    # One number per line says what concerns pairs: 3 absent, 1 through the common point, else 0.
    kind = jnp.where(lines.present, jnp.where(lines.zero, 1, 0), 3).astype(dtype)
    both = kind + pick(kind)
    never = lines.unit[partner] == lines.unit
    # Lines through the common point cross there and only there, unless they may coincide.
    skip = never | (both > 2) | ((both == 2) & safe) | (far & (both < 2))
    return jnp.where(skip, dtype.type(_FAR), at), jnp.where(skip, dtype.type(0), error)


def _chords(lines: Lines, foot, drift, centre, radius, slack, hit):
    """The interval of t of every line in every window, (W, m): middle, and two half-lengths.

    A parameter nearer to the middle than the inner half-length lies in the window for certain; one
    farther than the outer one does not. -inf where the line does not refine the window.
    """
    dtype = lines.value.dtype
    u = exact.unit_roundoff(dtype)
    least = dtype.type(u)
    bounds = []
    for k, direction in enumerate((-lines.slope[:, 1], lines.slope[:, 0])):
        # Flatter directions move a coordinate by less than what rounding does anyway.
        steep = jnp.where(abs(direction) < least, least, direction)
        at = (centre[:, k, None] - foot[k]) / steep
        reach = radius[:, k, None]
        wrong = drift + 4 * lines.slope_error + slack[:, None] + 64 * u
        width = abs(steep)
        bounds.append([(at, (reach + sign * wrong) / width) for sign in (-1, 0, 1)])
    low = [jnp.maximum(a - p, b - q) for (a, p), (b, q) in zip(*bounds, strict=True)]
    high = [jnp.minimum(a + p, b + q) for (a, p), (b, q) in zip(*bounds, strict=True)]
    middle = (low[1] + high[1]) / 2
    inner = jnp.minimum(middle - low[0], high[0] - middle)
    outer = jnp.maximum(middle - low[2], high[2] - middle)
    return middle, jnp.where(hit, inner, -np.inf), jnp.where(hit, outer, -np.inf)


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

"""Crossings of one draw's lines inside many two-dimensional windows, with proven bounds.

Line i is {y : g_i . y + h_i = 0}, in coordinates in which all windows lie in the unit disc. Its
crossing with line j lies at y = f_i + t_ij (-g_i2, g_i1), f_i its point nearest to the origin and

    t_ij = -(h_j + g_j . f_i) / (g_i1 g_j2 - g_i2 g_j1),

and a window is an interval of t on it. So a crossing is computed once for all windows and compared
once per window. Arrays of pairs are (row, i): row s has the crossings of i with i + s mod m. A loop
over rows is one contiguous operation on all lines, and rows 1 to m / 2 have every pair once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact

__all__ = ["Lines", "count_crossings", "parallels", "partners", "twins"]

_FAR = 8.0  # a parameter beyond every window: |t| <= 2 in the unit disc, as |g| >= 1/2
_OPEN = np.int32(1 << 16)  # in a word: a crossing of which it cannot be told


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
    columns = lines.slope[:, 0], lines.slope[:, 1]
    place = lines, columns, *_feet(lines, columns)
    at, error = _parameters(*place, size // 2 if simple else size - 1)
    inside, decided = _inside(at, error, *_chords(*place, centre, radius, slack, hit))
    if not simple:
        decided = decided & ~_any_close(at, error)
    return inside, decided


def partners(array: Any, rows: int) -> Any:
    """(m,) -> (rows, m): array[(i + s) mod m] for s = 1 to rows."""
    size, twice = len(array), jnp.concatenate([array, array])
    shifts = np.arange(1, rows + 1, dtype=np.int32)
    return jax.vmap(lambda s: jax.lax.dynamic_slice(twice, (s,), (size,)))(shifts)


def parallels(unit: np.ndarray, rows: int) -> np.ndarray:
    """Whether ``partners`` are of the same unit: NumPy (rows, m)."""
    size = len(unit)
    return unit[(np.arange(size) + np.arange(1, rows + 1)[:, None]) % size] == unit


def _inside(at: Any, error: Any, middle: Any, inner: Any, outer: Any) -> tuple[Any, Any]:
    """Pairs that cross in every window's intervals, and whether each was told in or out."""
    size = middle.shape[-1]

    def step(row, words):
        # Every pair of the row m / 2 is there twice.
        once = (2 * (row + 1) < size) | (np.arange(size) < size // 2)
        distance = abs(jnp.where(once, at[row], _FAR) - middle)
        return words + _word(distance, inner - error[row], outer + error[row])

    return _summed(jax.lax.fori_loop(0, size // 2, step, jnp.zeros(middle.shape, np.int32)))


def _word(distance: Any, inner: Any, outer: Any) -> Any:
    """1 inside, 0 outside, else _OPEN; of NaN too."""
    return jnp.where(distance < inner, np.int32(1), jnp.where(distance >= outer, 0, _OPEN))


def _summed(words: Any) -> tuple[Any, Any]:
    """(W, m) -> how many inside, whether none is open: by one sum, or XLA makes the words twice."""
    lines = words.shape[-1]
    if lines * lines // 2 < 1 << 16:  # both parts of the sum fit
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


def _parameters(lines: Lines, columns: Any, foot: Any, drift: Any, rows: int) -> tuple[Any, Any]:
    """t_ij and its error, at most 1, (rows, m): beyond 2.4 where no window is reached.

    NaN where it cannot be told that well. Written with |g| <= sqrt 2, |f| <= 3.
    """
    u = exact.unit_roundoff(lines.value.dtype)
    gx, gy = columns
    jx, jy, jh = (partners(array, rows) for array in (gx, gy, lines.value))
    rate, level = gx * jy - gy * jx, jh + jx * foot[0] + jy * foot[1]
    # The errors of the worst lines stand for all.
    own = 4 * u * (abs(foot[0]) + abs(foot[1])) + 1.5 * drift
    other = 4 * u * abs(lines.value) + lines.value_error + 3 * lines.slope_error
    level_error = 1.01 * (_most(own, lines) + _most(other, lines))
    rate_error = 2.02 * _most(4 * u + 1.5 * lines.slope_error, lines)
    size = abs(rate)
    apart = size - rate_error
    far = abs(level) - level_error > 2.5 * (size + rate_error)
    # Else |t| <= 2.5 and a bit.
    vague = apart < 2 * (level_error + 2.6 * rate_error)
    # One number per line says what concerns pairs: 3 absent, 1 through the common point, else 0.
    kind = jnp.where(lines.present, jnp.where(lines.zero, 1, 0), 3).astype(size.dtype)
    both = kind + partners(kind, rows)
    # Lines through the common point cross there and only there, unless they may coincide.
    skip = parallels(lines.unit, rows) | (both > 2) | ((both == 2) & (apart > 0))
    at = jnp.where(vague, jnp.where(far, _FAR, np.nan), -level / rate)
    error = 1.01 * (level_error + 2.6 * rate_error) / jnp.where(vague, 1, apart) + 16 * u
    return jnp.where(skip, _FAR, at), error


def _most(errors: Any, lines: Lines) -> Any:
    return jnp.max(jnp.where(lines.present, errors, 0))


def _chords(lines: Lines, columns: Any, foot, drift, centre, radius, slack, hit):
    """The interval of t of every line in every window, (W, m): a middle and two half-lengths.

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
    """Whether two crossings on one line may coincide, () of (m - 1, m).

    Of three lines in a point, numbered around a circle, two neighbours are the least apart: from
    the third one they are seen in rows at most m / 3 apart.
    """
    rows, size = at.shape
    far = abs(at) - error >= 2.5
    key = jnp.where(far, np.nan, at)
    twice, errors = jnp.concatenate([key, key]), jnp.concatenate([error, error])

    def step(apart, close):
        other, bound = (jax.lax.dynamic_slice_in_dim(v, apart, rows) for v in (twice, errors))
        return close | (abs(other - key) <= bound + error)

    return jnp.any(jax.lax.fori_loop(1, size // 3 + 1, step, jnp.isnan(at)))


def twins(slope: Any, slope_error: Any, unit: np.ndarray) -> Any:
    """Hyperplanes (m,) that may be parallel to one of another unit, slope (m, k).

    Of two of them at least one is named. sin^2 of the angle by its definition for k = 2, by
    Lagrange's identity beyond.
    """
    k = slope.shape[-1]
    u = exact.unit_roundoff(slope.dtype)
    size = jnp.sqrt(jnp.sum(slope * slope, -1))
    unsafe = slope_error > 2.0**-8 * size
    safe = jnp.where(unsafe | (size == 0), 1, size)
    direction = slope / safe[..., None]
    blur = slope_error / safe + (k + 8) * u
    if k == 2:
        rows = len(unit) // 2
        (x, y), error = direction.T, blur + partners(blur, rows)
        close = abs(x * partners(y, rows) - y * partners(x, rows)) <= 4 * error
        close = (close & ~parallels(unit, rows)).astype(np.int32)
        return (jnp.sum(close, 0, dtype=np.int32) > 0) | unsafe
    cosine = jnp.einsum("ik,jk->ij", direction, direction, precision="highest")
    close = 1 - cosine * cosine <= 8 * (blur[:, None] + blur)
    return jnp.any(close & (unit[:, None] != unit), 1) | unsafe

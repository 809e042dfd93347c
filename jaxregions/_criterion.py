"""The window criterion, decided: a fast screening pass, float64 for the rest, rationals for ties.

A pair (window, hyperplane) is compared through

    value = w . (a - p) + (B'w) . s - o,      reach = sum_j r_j |(B'w)_j|,

a the window's anchor (its centre if it has none) and s the shift (0). The hyperplane refines the
window iff |value| < reach, and is tangent to it iff they are equal.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact

BLOCK = 64  # units per block: what the screening pass leaves open is decided again block by block
_ROWS = 128  # windows per step of the screening pass: keeps a step's matrix in the cache
_SEGMENT = 112  # terms of a screening dot product that are summed before the next are added
_DENSE_BYTES = 64 << 20  # working set of one dense float64 step
_HIT = 1 + (1 << 16)  # one refining hyperplane, one refined unit
_OPEN = 1 << 24  # one unit with an undecided hyperplane


class Problem(NamedTuple):
    """Windows (flat, W of them) and hyperplanes as float64 arrays; P is 1 (shared planes) or W."""

    normal: np.ndarray  # (P, n, d)
    point: np.ndarray  # (P, d)
    offset: np.ndarray  # (P, n, K)
    anchor: np.ndarray  # (W, d)
    shift: np.ndarray | None  # (W, k)
    basis: np.ndarray | None  # (1 or W, d, k)
    radius: np.ndarray  # (W, k)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.anchor.shape[0], self.normal.shape[1], self.offset.shape[2]


def problem(planes: Any, windows: Any) -> Problem:
    """The float64 arrays of a ``Hyperplanes`` and a ``Window``, leading axes flattened."""
    as64 = partial(np.asarray, dtype=np.float64)
    count = int(np.prod(windows.batch_shape))
    d, k = windows.input_dimension, windows.dimension
    normal, point, offset = as64(planes.normal), as64(planes.point), as64(planes.offset)
    basis = None if windows.basis is None else as64(windows.basis).reshape(-1, d, k)
    return Problem(
        normal.reshape(-1, *normal.shape[-2:]),
        point.reshape(-1, d),
        offset.reshape(-1, *offset.shape[-2:]),
        as64(windows.center if windows.anchor is None else windows.anchor).reshape(count, d),
        None if windows.shift is None else as64(windows.shift).reshape(count, k),
        basis,
        as64(windows.radii()).reshape(count, k),
    )


def relation(task: Problem) -> tuple[np.ndarray, np.ndarray]:
    """(W, n, K) int8: 1 refines, 0 tangent, -1 misses (or no hyperplane); and rationals used, (W,)."""
    count, units, breaks = task.sizes
    out = np.empty(task.sizes, np.int8)
    rechecked = np.zeros(count, np.int64)
    step = max(1, _DENSE_BYTES // max(1, 8 * units * (breaks + task.anchor.shape[1])))
    for start in range(0, count, step):
        rows = np.arange(start, min(count, start + step))
        out[rows], rechecked[rows] = decide(task, rows, slice(0, units))
    return out, rechecked


def decide(task: Problem, rows: np.ndarray, units: slice) -> tuple[np.ndarray, np.ndarray]:
    """``relation`` of some windows with a range of units: (R, U, K) and rationals used (R,)."""
    value, reach, error = _evaluate(task, rows, units)
    sign = np.zeros(value.shape, np.int8)
    margin = reach[..., None] - abs(value)
    sign[margin > error] = 1
    sign[margin < -error] = -1
    picked = slice(0, 1) if task.normal.shape[0] == 1 else rows
    sign[np.broadcast_to(np.isinf(task.offset[picked, units]), sign.shape)] = -1
    absent = ~task.normal[picked, units].any(-1)
    sign[np.broadcast_to(absent[..., None], sign.shape)] = -1
    open_pairs = np.argwhere(sign == 0)
    rechecked = np.bincount(open_pairs[:, 0], minlength=len(rows))
    for r, u, b in open_pairs:
        sign[r, u, b] = _decide_rational(task, rows[r], units.start + u, b)
    return sign, rechecked


def _evaluate(task: Problem, rows: np.ndarray, units: slice):
    """value (R, U, K), reach (R, U) and a rigorous bound (R, U, K) on the error of |value| - reach."""
    shared = task.normal.shape[0] == 1
    normal = task.normal[0, units] if shared else task.normal[rows][:, units]
    offset = task.offset[0, units] if shared else task.offset[rows][:, units]
    moved, size = displacement(task, rows)
    product = "rd,ud->ru" if shared else "rd,rud->ru"
    projected = np.einsum(product, moved, normal, optimize=True)
    reach, spread = _reach(task, normal, rows)
    with np.errstate(over="ignore", invalid="ignore"):
        value = projected[..., None] - offset
        norm = np.linalg.norm(normal, axis=-1)
        d, k = task.anchor.shape[1], task.radius.shape[1]
        bound = (size + spread)[:, None] * norm
        scale = bound[..., None] + abs(np.where(np.isinf(offset), 0.0, offset))
        error = exact.gamma(2 * (d + k) + 16, np.float64) * scale + (d + 1) * 1e-300
    return value, reach, error


def displacement(task: Problem, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """anchor - point + basis shift, (R, d), and the size (R,) that its rounding is relative to."""
    shared = task.point.shape[0] == 1
    moved = task.anchor[rows] - (task.point[0] if shared else task.point[rows])
    size = np.linalg.norm(moved, axis=-1)
    if task.shift is not None:
        basis = task.basis[0] if task.basis.shape[0] == 1 else task.basis[rows]
        moved = moved + np.einsum("...dk,...k->...d", basis, task.shift[rows])
        size = size + np.linalg.norm(
            np.einsum("...dk,...k->...d", abs(basis), abs(task.shift[rows])), axis=-1
        )
    return moved, size


def _reach(task: Problem, normal: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sum_j r_j |(B'w)_j|, (R, U), and the spread (R,): reach <= spread * |w|, with its rounding."""
    radius = task.radius[rows]
    length = np.sqrt(radius.shape[1]) * np.linalg.norm(radius, axis=-1)
    if task.basis is None:
        product = "rk,uk->ru" if normal.ndim == 2 else "rk,ruk->ru"
        return np.einsum(product, radius, abs(normal), optimize=True), length
    basis = task.basis[0] if task.basis.shape[0] == 1 else task.basis[rows]
    slopes = abs(normal @ basis)
    product = "rk,uk->ru" if slopes.ndim == 2 else "rk,ruk->ru"
    spread = length * np.linalg.norm(basis, axis=(-2, -1))
    return np.einsum(product, radius, slopes, optimize=True), spread


def _decide_rational(task: Problem, row: int, unit: int, breakpoint: int) -> int:
    """The sign of reach - |value| in exact arithmetic."""
    plane = 0 if task.normal.shape[0] == 1 else row
    normal = exact.rationals(task.normal[plane, unit])
    value = normal @ (exact.rationals(task.anchor[row]) - exact.rationals(task.point[plane]))
    slopes = normal
    if task.basis is not None:
        slopes = normal @ exact.rationals(task.basis[0 if len(task.basis) == 1 else row])
    if task.shift is not None:
        value = value + slopes @ exact.rationals(task.shift[row])
    value = value - exact.rational(task.offset[plane, unit, breakpoint])
    reach = exact.rationals(task.radius[row]) @ abs(slopes)
    return exact.compare(reach, abs(value))


def count(task: Problem, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """hits, units, tangencies and rechecked pairs per window, (W,) each; shared planes only."""
    total, units, breaks = task.sizes
    packed = _screen(task, dtype)
    hits = (packed & 0xFFFF).sum(0)
    refined = ((packed >> 16) & 0xFF).sum(0)
    tangencies, rechecked = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for block, still_open in enumerate(packed >> 24):
        rows = np.flatnonzero(still_open)
        if not len(rows):
            continue
        span = slice(block * BLOCK, min(units, (block + 1) * BLOCK))
        for part in np.array_split(rows, -(-len(rows) * BLOCK * breaks // (1 << 20))):
            sign, _ = decide(task, part, span)
            hit = sign > 0
            hits[part] += hit.sum((1, 2)) - (packed[block, part] & 0xFFFF)
            refined[part] += hit.any(2).sum(1) - ((packed[block, part] >> 16) & 0xFF)
            tangencies[part] += (sign == 0).sum((1, 2))
            rechecked[part] += still_open[part]
    return hits, refined, tangencies, rechecked


def _screen(task: Problem, dtype: np.dtype) -> np.ndarray:
    """Packed decisions per block of units and window: (blocks, W) int64.

    Bits 0-15 hits, 16-23 refined units, 24 and up units with an undecided hyperplane.
    """
    total, units, breaks = task.sizes
    d, k = task.anchor.shape[1], task.radius.shape[1]
    normal, offset = task.normal[0], task.offset[0]
    rows = np.arange(total)
    moved, size = displacement(task, rows)
    radius = task.radius
    scalar = bool((radius == radius[:, :1]).all())
    slopes = abs(normal if task.basis is None else normal @ task.basis[0])
    basis_size = 1.0 if task.basis is None else np.linalg.norm(task.basis[0])
    # Powers of two bring rows and windows near 1, so that float32 neither overflows nor vanishes.
    unit_scale = np.ldexp(1.0, -np.frexp(np.linalg.norm(normal, axis=1))[1])
    window_scale = np.ldexp(1.0, -np.frexp(max(abs(moved).max(), radius.max()))[1])
    absent = ~normal.any(1)[:, None] | np.isinf(offset)
    scaled_offset = np.where(absent, 0.0, offset) * unit_scale[:, None] * window_scale
    normal = normal * unit_scale[:, None]
    slopes = slopes * unit_scale[:, None]
    radius = radius * window_scale
    length = np.sqrt(k) * np.linalg.norm(radius, axis=1) * basis_size
    value_slack = exact.gamma(min(d, _SEGMENT) + -(-d // _SEGMENT) + 8, dtype) * size * window_scale
    reach_slack = exact.gamma((1 if scalar else k) + 8, dtype) * length
    slack = value_slack + reach_slack + (d + k) * 1e-30
    offset_slack = np.where(absent, 0.0, exact.gamma(8, dtype) * abs(scaled_offset))
    reach_left = (radius[:, :1], slopes.sum(1, keepdims=True)) if scalar else (radius, slopes)
    padding = -units % BLOCK
    pad = lambda a, fill=0.0: np.pad(a, ((0, padding), (0, 0)), constant_values=fill)  # noqa: E731
    # An absent hyperplane, and a padding row, is one whose value always exceeds every reach.
    far = np.where(absent, np.inf, scaled_offset)
    arguments = [pad(normal), pad(reach_left[1]), pad(far, np.inf), pad(offset_slack)]
    windows = [moved * window_scale, reach_left[0], slack[:, None]]
    with jax.enable_x64(True):
        arguments = [jnp.asarray(a, dtype) for a in arguments]
        windows = [jnp.asarray(a, dtype) for a in windows]
        packed = _screen_step(*arguments, *windows, rows=min(_ROWS, total))
        return np.asarray(packed)[:, :total].astype(np.int64)


@partial(jax.jit, static_argnames="rows")
def _screen_step(normal, slopes, offset, offset_slack, moved, radius, slack, *, rows):
    total, blocks = moved.shape[0], normal.shape[0] // BLOCK
    steps = -(-total // rows)
    dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def step(start):
        take = lambda a: jax.lax.dynamic_slice_in_dim(a, start, rows).T  # noqa: E731
        value = _segmented_dot(normal, take(moved), dot)
        reach = _outer(slopes, take(radius), dot)
        bits = jnp.zeros(value.shape, jnp.int32)
        any_hit = jnp.zeros(value.shape, bool)
        any_open = jnp.zeros(value.shape, bool)
        for b in range(offset.shape[1]):
            excess = abs(value - offset[:, b, None]) - reach
            slop = take(slack) + offset_slack[:, b, None]
            hit = excess < -slop
            bits = bits + hit
            any_hit = any_hit | hit
            any_open = any_open | ~(hit | (excess > slop))
        bits = bits + jnp.where(any_hit, _HIT - 1, 0) + jnp.where(any_open, _OPEN, 0)
        return bits.reshape(blocks, BLOCK, rows).sum(1, dtype=jnp.int32)

    starts = jnp.minimum(jnp.arange(steps) * rows, total - rows)
    out = jax.lax.map(step, starts)
    whole = jnp.moveaxis(out[:-1], 0, 1).reshape(blocks, -1)
    # The last step ends flush with the windows and may overlap the one before.
    last = out[-1][:, (steps * rows - total) :]
    return jnp.concatenate([whole, last], axis=1)


def _segmented_dot(normal, moved, dot):
    """A product whose rounding bound grows with the segment, not with the whole contraction."""
    edges = range(0, normal.shape[1], _SEGMENT)
    return sum(dot(normal[:, e : e + _SEGMENT], moved[e : e + _SEGMENT]) for e in edges)


def _outer(slopes, radius, dot):
    return slopes * radius if slopes.shape[1] == 1 else dot(slopes, radius)

"""The window criterion, decided: a fast screening pass, float64 for the rest, rationals for ties.

A pair (window, hyperplane) is compared through

    value = w . (a - p) + (B'w) . s - o,      reach = sum_j r_j |(B'w)_j|,

a the window's anchor (its centre if it has none) and s the shift (0). The hyperplane refines the
window iff |value| < reach, and is tangent to it iff they are equal.
"""

from __future__ import annotations

from functools import partial, reduce
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact

_HIT, _DECIDED = np.int32(1), np.int32(1 << 16)  # what a decision adds to a block's count
BLOCK = 16  # units per block: what the screening pass leaves open is decided again block by block
_ROWS = 256  # windows per step of the screening pass: keeps a step's matrix in the cache
_SEGMENT = 196  # terms of a screening dot product that are summed before the next are added
_SLAB = 1 << 14  # windows of one screening call
_DENSE_BYTES = 64 << 20  # working set of one dense float64 step


class Problem(NamedTuple):
    """Windows (flat, W of them) and hyperplanes, float64; P is 1 (shared planes) or W.

    The anchors keep the caller's precision: there are many, and float64 loses nothing of them.
    """

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
        np.asarray(windows.center if windows.anchor is None else windows.anchor).reshape(count, d),
        None if windows.shift is None else as64(windows.shift).reshape(count, k),
        basis,
        as64(windows.radii()).reshape(count, k),
    )


def relation(task: Problem) -> tuple[np.ndarray, np.ndarray]:
    """(W, n, K) int8: 1 refines, 0 tangent, -1 misses or absent; and rationals used, (W,)."""
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
    shared = task.normal.shape[0] == 1
    normal = task.normal[0, units] if shared else task.normal[rows][:, units]
    offset = task.offset[0, units] if shared else task.offset[rows][:, units]
    moved, size = displacement(task, rows)
    projected = moved @ normal.T if shared else np.einsum("rd,rud->ru", moved, normal)
    reach, spread = _reach(task, normal, rows)
    value = projected[..., None] - offset
    norm = size_of(normal)
    sign = _proven_signs(task, value, reach, size + spread, norm, offset)
    open_pairs = np.argwhere(sign == 0)
    for r, u, b in open_pairs:
        sign[r, u, b] = _decide_rational(task, rows[r], units.start + u, b)
    return sign, np.bincount(open_pairs[:, 0], minlength=len(rows))


def _proven_signs(task: Problem, value, reach, size, norm, offset) -> np.ndarray:
    """The sign of reach - |value| where float64 proves it, else 0; (R, U, K), reach (R, U).

    ``size`` (R,) times ``norm`` (U,) or (R, U) bounds the terms that were rounded.
    """
    d, k = task.anchor.shape[1], task.radius.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        infinite = np.isinf(offset)
        scale = (size[:, None] * norm)[..., None] + abs(np.where(infinite, 0.0, offset))
        error = exact.gamma(2 * (d + k) + 16, np.float64) * scale + (d + 1) * 1e-300
        margin = reach[..., None] - abs(value)
        sign = (margin > error).astype(np.int8) - (margin < -error)
    absent = infinite | (norm == 0)[..., None]
    sign[np.broadcast_to(absent, sign.shape)] = -1
    return sign


def size_of(vectors: np.ndarray) -> np.ndarray:
    """Euclidean norms over the last axis, where squares would underflow or overflow too."""
    largest = abs(vectors).max(-1, keepdims=True)
    scaled = vectors / np.where(largest == 0, 1.0, largest)
    return largest[..., 0] * np.linalg.norm(scaled, axis=-1)


def displacement(task: Problem, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """anchor - point + basis shift, (R, d), and the size (R,) that its rounding is relative to."""
    shared = task.point.shape[0] == 1
    moved = task.anchor[rows].astype(np.float64) - (task.point[0] if shared else task.point[rows])
    size = size_of(moved)
    if task.shift is not None and task.basis is not None:
        basis = task.basis[0] if task.basis.shape[0] == 1 else task.basis[rows]
        moved = moved + np.einsum("...dk,...k->...d", basis, task.shift[rows])
        terms = np.einsum("...dk,...k->...d", abs(basis), abs(task.shift[rows]))
        size = size + size_of(terms)
    return moved, size


def _reach(task: Problem, normal: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sum_j r_j |(B'w)_j|, (R, U), and (R,) the spread: reach <= spread |w|, rounding too."""
    radius = task.radius[rows]
    spread = np.sqrt(radius.shape[1]) * size_of(radius)
    slopes = normal
    if task.basis is not None:
        basis = task.basis[0] if task.basis.shape[0] == 1 else task.basis[rows]
        slopes = normal @ basis
        spread = spread * size_of(basis.reshape(*basis.shape[:-2], -1))
    if slopes.ndim == 2 and (radius == radius[:, :1]).all():
        return radius[:, :1] * abs(slopes).sum(1), spread
    if slopes.ndim == 2:
        return radius @ abs(slopes).T, spread
    return np.einsum("rk,ruk->ru", radius, abs(slopes)), spread


def _decide_rational(task: Problem, row: Any, unit: Any, breakpoint: Any) -> int:
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
    """hits, units, tangencies and pairs decided again per window, (W,) each; shared planes only."""
    total = task.sizes[0]
    hits, refined, tangencies, rechecked = np.zeros((4, total), np.int64)
    slab = min(_SLAB, total)
    rate, scalar, planes = _normalised_planes(task, dtype)
    pairs = []
    done = 0
    starts = _starts(total, slab)
    # One slab ahead: the device works on the next while the last one's results are read.
    queue = [_screen_slab(task, planes, rate, start, slab, scalar) for start in starts[:1]]
    for i, start in enumerate(starts):
        queue += [_screen_slab(task, planes, rate, n, slab, scalar) for n in starts[i + 1 : i + 2]]
        some_hits, some_refined, still_open = (np.asarray(a) for a in queue.pop(0))
        rows = still_open.shape[-1]
        for step, first in enumerate(start + _starts(slab, rows)):
            # A window in two overlapping steps belongs to the first: the other rounds differently.
            new = slice(max(0, done - first), rows)
            hits[first + new.start : first + rows] = some_hits[step, new]
            refined[first + new.start : first + rows] = some_refined[step, new]
            block, row = np.divmod(_true_entries(still_open[step]), rows)
            keep = row >= new.start
            pairs.append((block[keep], first + row[keep]))
            done = max(done, first + rows)
    block, row = (np.concatenate(p) for p in zip(*pairs, strict=True))
    order = np.argsort(block, kind="stable")
    _decide_blocks(task, block[order], row[order], (hits, refined, tangencies, rechecked))
    return hits, refined, tangencies, rechecked


def _screen_slab(task: Problem, planes, rate, start: int, slab: int, scalar: bool):
    rows = slice(start, start + slab)
    shift = None if task.shift is None else task.shift[rows]
    radius = task.radius[rows, :1] if scalar else task.radius[rows]
    with jax.enable_x64(True):
        return _screen(*planes, task.anchor[rows], shift, radius, rate, scalar=scalar)


def _true_entries(mask: np.ndarray) -> np.ndarray:
    """np.flatnonzero of a mostly false mask, eight entries at a look."""
    flat = mask.ravel()
    whole = len(flat) // 8 * 8
    groups = np.flatnonzero(flat[:whole].view(np.uint64))
    near = (8 * groups[:, None] + np.arange(8)).ravel()
    return np.concatenate([near[flat[near]], whole + np.flatnonzero(flat[whole:])])


def _decide_blocks(task: Problem, blocks: np.ndarray, rows: np.ndarray, counts: Any) -> None:
    """Adds what the screening left out: pairs of a block of units and a window, sorted by block."""
    hits, refined, tangencies, rechecked = counts
    padding = ((0, -task.sizes[1] % BLOCK), (0, 0))
    normal = np.pad(task.normal[0], padding)
    offset = np.pad(task.offset[0], padding).reshape(-1, BLOCK, task.sizes[2])
    norm = size_of(normal).reshape(-1, BLOCK)
    step = max(1, (1 << 21) // (task.anchor.shape[1] + BLOCK * task.sizes[2]))
    for start in range(0, len(rows), step):
        block, row = blocks[start : start + step], rows[start : start + step]
        moved, size = displacement(task, row)
        projected, reach = np.empty((2, len(row), BLOCK))
        spread = np.empty(len(row))
        edges = np.flatnonzero(np.diff(block, prepend=-1, append=-1))
        for low, high in pairwise(edges):
            units = normal[block[low] * BLOCK :][:BLOCK]
            projected[low:high] = moved[low:high] @ units.T
            reach[low:high], spread[low:high] = _reach(task, units, row[low:high])
        value = projected[..., None] - offset[block]
        sign = _proven_signs(task, value, reach, size + spread, norm[block], offset[block])
        for p, u, b in np.argwhere(sign == 0):
            sign[p, u, b] = _decide_rational(task, row[p], block[p] * BLOCK + u, b)
        hit = sign > 0
        np.add.at(hits, row, hit.sum((1, 2)))
        np.add.at(refined, row, hit.any(2).sum(1))
        np.add.at(tangencies, row, (sign == 0).sum((1, 2)))
        np.add.at(rechecked, row, (norm[block] > 0).sum(1) * task.sizes[2])


def _starts(total: int, rows: int) -> np.ndarray:
    """First window of every step; the last step ends flush and may overlap the one before."""
    return np.minimum(np.arange(-(-total // rows)) * rows, total - rows)


def _normalised_planes(task: Problem, dtype: np.dtype) -> tuple[np.ndarray, bool, tuple]:
    """The error rate, whether all windows are cubes, and the units divided by their reach."""
    units = task.sizes[1]
    d, k = task.anchor.shape[1], task.radius.shape[1]
    normal, offset = task.normal[0], task.offset[0]
    slopes = abs(normal if task.basis is None else normal @ task.basis[0])
    absent = ~normal.any(1)[:, None] | np.isinf(offset)
    with np.errstate(all="ignore"):  # a slice parallel to a unit makes its row NaN: left open
        inverse = np.where(normal.any(1), 1 / slopes.sum(1), 0.0)[:, None]
        normal, slopes = normal * inverse, slopes * inverse
        offset = np.where(absent, np.inf, offset * inverse)
    padding = ((0, -units % BLOCK), (0, 0))
    normal, slopes = np.pad(normal, padding), np.pad(slopes, padding)
    offset = np.pad(offset, padding, constant_values=np.inf)
    steep = np.nan_to_num(np.linalg.norm(normal, axis=1)).reshape(-1, BLOCK).max(1)
    scalar = bool((task.radius == task.radius[:, :1]).all())
    terms = min(d, _SEGMENT) + -(-d // _SEGMENT) + (0 if scalar else k) + 10
    with np.errstate(over="ignore"):
        planes = [a.astype(dtype) for a in (normal, slopes, offset, steep)]
    planes[2] = planes[2] if offset.any() else None
    point = task.point[0]
    return np.asarray(exact.gamma(terms, dtype)), scalar, (*planes, point, task.basis)


@partial(jax.jit, static_argnames="scalar")
def _screen(normal, slopes, offset, steep, point, basis, anchor, shift, radius, rate, *, scalar):
    """Proven decisions at working precision, ``BLOCK`` units and ``_ROWS`` windows at a time.

    Units come divided by their reach and windows are divided by their radius, so a hyperplane
    refines iff |value| < 1 (< a reach of at most 1 where radii differ by axis). Per step of
    windows: hits and refined units of the blocks without an open decision, (rows,) each, and the
    blocks with one, (blocks, rows).
    """
    blocks, dtype = normal.shape[0] // BLOCK, normal.dtype
    breaks = 1 if offset is None else offset.shape[1]
    total, rows = anchor.shape[0], min(_ROWS, anchor.shape[0])
    dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def step(start):
        take = lambda a: jax.lax.dynamic_slice_in_dim(a, start, rows).astype(float)  # noqa: E731
        moved, axes = take(anchor) - point, take(radius)
        largest = axes.max(1, keepdims=True)
        size = jnp.linalg.norm(moved / largest, axis=1, keepdims=True)
        if shift is not None:
            moved = moved + dot(take(shift), basis[0].T)
            terms = dot(abs(take(shift)), abs(basis[0]).T) / largest
            size = size + jnp.linalg.norm(terms, axis=1, keepdims=True)
        across = lambda a: a.astype(dtype).T  # noqa: E731
        projected = _segmented_dot(normal, across(moved / largest), dot)
        # |error| <= rate (|terms| + 2): an offset that exceeds the terms by more than 2 misses.
        slop = (steep[:, None] * across(rate * size) + across(2 * rate))[:, None]
        slop = jnp.where(slop < 0.5, slop, jnp.nan)  # no decision where the bound is useless
        reach = 1.0
        if not scalar:
            reach = dot(slopes, across(axes / largest)).reshape(blocks, BLOCK, rows)
        # Kept from being fused into, and computed again for, every pair.
        low, high = jax.lax.optimization_barrier((reach - slop, reach + slop))
        bits, refined = 0, False
        for b in range(breaks):
            value = projected
            if offset is not None:
                value = projected - offset[:, b, None] * across(1 / largest)
            value = abs(value).reshape(blocks, BLOCK, rows)
            # Both comparisons are False for NaN, which so stays open.
            miss = jnp.where(value >= high, _DECIDED, np.int32(0))
            bits = bits + jnp.where(value < low, _DECIDED | _HIT, miss)
            refined = refined | (value < low)
        packed = jnp.sum(bits, 1, dtype=np.int32)  # x64 would widen it
        settled = packed >> 16 == BLOCK * breaks
        hits = jnp.where(settled, packed & 0xFFFF, 0).sum(0)
        units = hits if breaks == 1 else jnp.where(settled, jnp.sum(refined, 1), 0).sum(0)
        return hits, units, ~settled

    return jax.lax.map(step, jnp.asarray(_starts(total, rows)))


def _segmented_dot(normal, moved, dot):
    """A product whose rounding bound grows with the segment, not with the whole contraction."""
    edges = range(0, normal.shape[1], _SEGMENT)
    parts = [dot(normal[:, e : e + _SEGMENT], moved[e : e + _SEGMENT]) for e in edges]
    return reduce(jnp.add, parts)

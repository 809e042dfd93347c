"""The window criterion, decided: a fast screening pass, float64 for the rest, rationals for ties.

A pair (window, hyperplane) is compared through

    value = w . (a - p) + (B'w) . s - o,      reach = sum_j r_j |(B'w)_j|,

a the window's anchor (its centre if it has none) and s the shift (0). The hyperplane refines the
window iff |value| < reach, and is tangent to it iff they are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact

_BLOCK = 16  # units per word of open decisions
_HIT = np.int32(1 << _BLOCK)  # above the open bits of a word
_ROWS = 128  # windows per step of the screening pass: keeps a step's matrix in the cache
_SLAB = 1 << 14  # windows of one screening call, at most
_SLAB_BYTES = 16 << 20  # of their centres: copies of larger arrays are made of page faults
_OPEN = 1 << 15  # pairs that are decided again in one call, at most
_PAIRS = 256  # pairs per step of such a call; one on CPUs, where gathers of many are slow
_AT_ONCE = 2  # slabs: what one does on a single core overlaps with the products of the other
_HUGE = 2.0**60  # screening leaves larger and smaller numbers alone: nothing over- or underflows
_FAINT = 1e-290  # compiled code reads subnormal parts of smaller normals as zero
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


def count(task: Problem, dtype: np.dtype) -> np.ndarray:
    """hits, units, tangencies and decisions made again per window, (4, W); shared planes only."""
    total = len(task.anchor)
    most = max(1, min(_SLAB, _SLAB_BYTES // max(1, task.anchor[0].nbytes)))
    slabs = _AT_ONCE * -(-total // (_AT_ONCE * most))
    slab = min(-(-total // slabs // _ROWS) * _ROWS, total)
    scalar = task.radius.strides[1] == 0 or bool((task.radius == task.radius[:, :1]).all())
    norm = size_of(task.normal[0])
    prepared = _screening_planes(task, norm, dtype, scalar), _pair_planes(task, scalar)
    with jax.enable_x64(True):  # once: a launch would copy NumPy arrays anew
        planes, exact_planes = jax.device_put(prepared, may_alias=True)
    norm = np.where((norm > 0) & (norm < _FAINT), np.inf, norm)  # read as zero: proves nothing
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def work(start: int) -> np.ndarray:
        with jax.enable_x64(True), jax.default_device(device):  # of a thread
            rows = slice(start, start + slab)
            return _count_slab(task, rows, norm, planes, exact_planes, scalar)

    counts = np.empty((4, total), np.int64)
    # The last ends flush: it may decide windows again that the one before has decided.
    starts = np.minimum(np.arange(0, total, slab), total - slab)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        each = pool.map if len(starts) > 1 else map
        for start, found in zip(starts, each(work, starts), strict=True):
            counts[:, start : start + slab] = found
    return counts


def _count_slab(task: Problem, rows: slice, norm, planes, exact_planes, scalar) -> np.ndarray:
    """``count`` of the windows of one slab: (4, R). On the device: planes and exact_planes."""
    total, units, breaks = rows.stop - rows.start, *task.sizes[1:]
    shift = None if task.shift is None else task.shift[rows]
    radius = task.radius[rows, :1] if scalar else task.radius[rows]
    # Aligned arrays are not copied, others once; jnp.asarray copies twice.
    windows = jax.device_put((task.anchor[rows], shift, radius), may_alias=True)
    found = _screening(jax.default_backend())(planes, windows)
    hits, refined, words, relative = map(np.asarray, found)
    size = _sizes(task, rows, radius, relative.astype(np.float64))
    counts = np.zeros((4, total), np.int64)
    counts[:2] = hits, refined
    for row, unit in _set_bits(words):
        row, unit = row[unit < units], unit[unit < units]
        value, reach = _projected(exact_planes, windows, row, unit, total * units)
        offset = task.offset[0, unit][:, None]
        value = value[:, None, None] - offset
        sign = _proven_signs(task, value, reach[:, None], size[row], norm[unit, None], offset)[:, 0]
        for p, b in np.argwhere(sign == 0):
            sign[p, b] = _decide_rational(task, rows.start + row[p], unit[p], b)
        added = (sign > 0).sum(1), (sign > 0).any(1), (sign == 0).sum(1), breaks
        for total_count, new in zip(counts, added, strict=True):
            np.add.at(total_count, row, new)
    return counts


def _set_bits(words: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row, unit) of the bits set in words (steps, blocks, rows), at most ``_OPEN`` each."""
    flat = words.ravel()
    if len(flat) % 4:
        flat = np.pad(flat, (0, -len(flat) % 4))
    looks = flat.astype("<u2", copy=False).view("<u8")  # few bits are set: four words at a look
    nonzero = np.flatnonzero(looks != 0)
    for start in range(0, len(nonzero), _OPEN // 4):
        look = nonzero[start : start + _OPEN // 4]
        bits = np.unpackbits(looks[look].view(np.uint8), bitorder="little").view(bool)
        found = np.flatnonzero(bits)
        for some in np.split(found, range(_OPEN, len(found), _OPEN)):
            word = 4 * look[some // 64] + some % 64 // _BLOCK
            step, block, row = np.unravel_index(word, words.shape)
            yield step * words.shape[2] + row, block * _BLOCK + some % _BLOCK


def _screening_planes(task: Problem, norm: np.ndarray, dtype: np.dtype, scalar: bool) -> tuple:
    """Units of Euclidean length 1, their reach per window radius, and the rounding rate.

    Any tree of additions of the n terms of a dot product makes an error of at most u times the sum
    of its |partial sums|, and a partial sum of terms that sum to v is at most (A + |v|) / 2,
    A = sum |terms|. So without offsets, where |v| counts only near the reach, the rate of A +
    reach is n u / 2, half of the usual gamma_n. (All rates: to first order, the rest is added.)
    """
    units = task.sizes[1]
    d, k = task.anchor.shape[1], task.radius.shape[1]
    normal, offset = task.normal[0], task.offset[0]
    stretch = 1.0 if task.basis is None else size_of(task.basis[0].ravel())
    with np.errstate(all="ignore"):  # what over- or underflows turns NaN: left open
        absent = norm[:, None] == 0
        inverse = 1 / np.where(absent, 1.0, norm[:, None])
        normal = normal * inverse
        reach = abs(normal if task.basis is None else normal @ (task.basis[0] / stretch))
        reach = reach.sum(1, keepdims=True) if scalar else reach
        offset = np.where(absent | np.isinf(offset), np.inf, offset * inverse)
        reach = np.where(absent, -np.inf, reach)
    padding = ((0, -units % _BLOCK), (0, 0))
    normal, offset = np.pad(normal, padding), np.pad(offset, padding)
    reach = np.pad(reach, padding, constant_values=-np.inf)
    with np.errstate(over="ignore"):
        normal, reach, offset = (a.astype(dtype) for a in (normal, reach, offset))
    offset = offset if offset.any() or offset.shape[1] > 1 else None
    single = np.finfo(dtype).eps
    additions = d * ((0.5 if offset is None else 1.0) + 2 * exact.gamma(d, dtype))
    prepared = (d + k) * np.finfo(np.float64).eps / single
    rate = exact.gamma(additions + (0 if scalar else k) + prepared + 16, dtype)
    # The centres' precision is enough for a - p, given how far p is from what it becomes there.
    kind = np.result_type(task.anchor.dtype, dtype)
    point = task.point[0].astype(kind)
    stray = size_of(task.point[0] - point)
    basis = None if task.basis is None else task.basis[0]
    return normal, reach, offset, point, stray, basis, stretch, np.asarray(rate, dtype)


@cache
def _screening(backend: str):
    """``_screen``, compiled; for CPUs with vectors as wide as they have: XLA stops at 256 bits."""
    wide = {"xla_cpu_prefer_vector_width": 512} if backend == "cpu" else None
    return jax.jit(_screen, compiler_options=wide)


def _screen(planes, windows):
    """Proven decisions at working precision, ``_ROWS`` windows at a time.

    Units have length 1 and windows are divided by their radius: a hyperplane refines iff |value| <
    reach. Returns hits and refined units among the units without an open decision, (R,) each, the
    units with one as bits of words (steps, blocks, rows), and windows' distances from the point in
    units of their radius, (R,).
    """
    normal, reach, offset, point, stray, basis, stretch, rate = planes
    anchor, shift, radius = windows
    blocks, dtype = normal.shape[0] // _BLOCK, normal.dtype
    breaks = 1 if offset is None else offset.shape[1]
    total, d = anchor.shape
    rows = min(_ROWS, total)
    dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    bit = (1 << np.arange(_BLOCK, dtype=np.int32))[:, None]

    largest = radius.max(1, keepdims=True)
    inverse = 1 / (largest * stretch)
    # Where a number is NaN both comparisons with it are False, which leaves the decision open.
    inverse = jnp.where((inverse < _HUGE) & (inverse > 1 / _HUGE), inverse, jnp.nan)
    least = (rate * np.sqrt(d) + stray * inverse[:, 0]).astype(dtype)
    factor = inverse.astype(dtype)

    def step(start):
        take = lambda a: jax.lax.dynamic_slice_in_dim(a, start, rows)  # noqa: E731
        moved = take(anchor).astype(point.dtype) - point
        scaled = moved * take(inverse).astype(point.dtype)
        size = jnp.linalg.norm(scaled.astype(dtype), axis=1)
        if shift is not None:
            scaled = scaled + dot(take(shift) * take(inverse), basis.T)
            terms = dot(abs(take(shift)) * take(inverse), abs(basis).T).astype(dtype)
            size = size + jnp.linalg.norm(terms, axis=1)
        proportional = jnp.where(size < _HUGE, rate * size, jnp.nan)
        # As a reduction, which is not fused into, and computed again for, every pair.
        slack = jnp.stack([proportional, take(least)]).sum(0)
        projected = dot(normal, scaled.astype(dtype).T)
        span = reach
        if reach.shape[1] > 1:
            span = dot(reach, take(radius / largest).astype(dtype).T)
        hit, decided = 0, True
        for b in range(breaks):
            value = (
                projected if offset is None else projected - offset[:, b, None] * take(factor)[:, 0]
            )
            excess = (abs(value) - span).reshape(blocks, _BLOCK, rows)
            refines = excess < -slack
            hit = hit + jnp.where(refines, _HIT, np.int32(0))
            decided = decided & (refines | (excess >= slack))
        words = jnp.sum(jnp.where(decided, hit, bit), 1, dtype=np.int32)
        hits = jnp.sum(words >> _BLOCK, 0, dtype=np.int32)
        refined = hits
        if breaks > 1:
            refined = jnp.sum(decided & (hit > 0), (0, 1), dtype=np.int32)
        return hits, refined, (words & (_HIT - 1)).astype(np.uint16), size

    hits, refined, words, size = jax.lax.map(step, jnp.arange(0, total, rows))
    return hits.ravel(), refined.ravel(), words, size.ravel()


def _sizes(task: Problem, rows: slice, radius: np.ndarray, relative) -> np.ndarray:
    """(R,) bounds, relative to |w|, of the terms of value and reach: errors are gamma times them.

    From |a - p| + |B||s| in units of the radius, as screening rounded it: hence the factor 2.
    """
    d, k = task.anchor.shape[1], task.radius.shape[1]
    scale = radius.max(1)
    if task.basis is not None:
        scale = scale * size_of(task.basis[0].ravel())
    wild = ~(relative < _HUGE)
    size = 2 * scale * (np.where(wild, 0.0, relative) + np.sqrt(k))
    size = size + np.finfo(np.float32).eps * size_of(task.point[0])
    if wild.any():
        size[wild] += displacement(task, np.arange(rows.start, rows.stop)[wild])[1]
    flushed = np.finfo(task.anchor.dtype).tiny  # compiled code reads smaller numbers as zero
    return size + np.sqrt(d) * flushed / exact.unit_roundoff(np.float64)


def _pair_planes(task: Problem, scalar: bool) -> tuple:
    """Normals, p, B'w and |B'w|, the last summed where windows are cubes; float64.

    Normals that float32 holds are kept in it: reading them is most of the work.
    """
    normal = task.normal[0]
    slopes = normal if task.basis is None else normal @ task.basis[0]
    reach = abs(slopes).sum(1, keepdims=True) if scalar else abs(slopes)
    with np.errstate(over="ignore"):
        single = normal.astype(np.float32)
    if (single == normal).all() and not single[abs(single) < np.finfo(np.float32).tiny].any():
        normal = single
    return normal, task.point[0], None if task.shift is None else slopes, reach


def _projected(planes, windows, row: np.ndarray, unit: np.ndarray, most: int) -> np.ndarray:
    """``_project_pairs`` of N <= most pairs, in arrays of one size: (2, N)."""
    many = 1 if jax.default_backend() == "cpu" else _PAIRS
    pairs = np.zeros((2, min(_OPEN, -(-most // many) * many)), np.int32)
    pairs[:, : len(row)] = row, unit
    steps = np.int32(-(-len(row) // many))
    found = _project_pairs(planes, windows, pairs.reshape(2, -1, many), steps)
    return np.asarray(found).reshape(2, -1)[:, : len(row)]


@jax.jit
def _project_pairs(planes, windows, pairs, steps):
    """float64 value without offset and reach, (2, S, P), of pairs (row, unit).

    pairs: indices (2, S, P), of which the first ``steps`` of the S lists count.
    """
    normal, point, slopes, reach = planes
    anchor, shift, radius = windows

    def one_step(i, out):
        of_row, of_unit = (
            partial(jnp.take, indices=index, axis=0, mode="clip") for index in pairs[:, i]
        )
        value = _dot(of_row(anchor).astype(float) - point, of_unit(normal).astype(float))
        if shift is not None:
            value = value + _dot(of_row(shift), of_unit(slopes))
        return out.at[:, i].set(jnp.stack([value, _dot(of_row(radius), of_unit(reach))]))

    return jax.lax.fori_loop(0, steps, one_step, jnp.zeros((2, *pairs.shape[1:])))


def _dot(a, b):
    """Row sums of a * b, by halves: XLA's CPU compiler adds numbers of a row one by one."""
    whole = a.shape[1] // 32 * 32
    terms, rest = a[:, :whole] * b[:, :whole], a[:, whole:] * b[:, whole:]
    while terms.shape[1] % 2 == 0 and terms.shape[1]:
        terms = terms[:, : terms.shape[1] // 2] + terms[:, terms.shape[1] // 2 :]
    return terms.sum(1) + rest.sum(1)

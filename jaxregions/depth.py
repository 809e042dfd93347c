"""Deeper layers seen from the input: pulled-back hyperplanes and hits inside parent regions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions._progress import watching
from jaxregions._records import is_traced, require_finite
from jaxregions.hyperplanes import Hyperplanes
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window, require_window

__all__ = ["CriticalScales", "StageHits", "critical_scales", "pull_back", "stage_hits"]

_BYTES = 128 << 20  # working set of one step over windows and directions
_STEPS = 16  # most steps over directions that one call takes, between two looks at the progress bar


class StageHits(NamedTuple):
    """Per window and stage, (..., S).

    in_parent: bool, the whole window lies in one parent region of that stage: no switching
        hyperplane of an earlier stage refines it. Always True for the first stage.
    hits: int64, units with a pulled-back switching hyperplane that refines the window; -1 where
        ``in_parent`` is False and the criterion makes no claim.
    """

    hits: Any
    in_parent: Any


class CriticalScales(NamedTuple):
    """The factors on a window's radii at which units begin to refine it.

    scales: per stage (..., units), the critical factor of each unit; inf for one that never does.
    limit: (..., S), the smallest factor of any earlier stage; inf for the first stage. The window
        scaled by t lies in one parent region of stage s exactly when t <= limit[..., s], and the
        factors of stage s hold that far.
    """

    scales: tuple[Any, ...]
    limit: Any


def pull_back(net: CPAFunction, x: Any, *, stage: int, rows: Any = None) -> Hyperplanes:
    """A stage's switching hyperplanes in input coordinates, around the point x.

    Inside the parent region of x the switching values are z(x) + J (y - x): normals J, the rows of
    the Jacobian, point x, offsets -z(x). One hyperplane per switching value. float64; under jit or
    vmap in the precision of x. Rounded: hyperplanes that share a point, as BatchNorm's do, miss it
    by rounding here. Exact decisions never start from these rows: ``in_parent_region`` and
    ``count_regions`` evaluate the function.

    Args:
      net: from ``jr.trace``.
      x: (*input_shape), an interior point of its parent region.
      stage: 0 .. number of stages - 1.
      rows: None: all switching values of the stage. (m,) integers: these only, by m
        vector-Jacobian products in bounded memory; of a large network J itself does not fit.

    Raises:
      ValueError: a point of another shape, a point that is not finite, a stage or row that does
        not exist.

    Source: MATHEMATICS.md, transfer through depth.
    """
    require_traced(net)
    if not 0 <= stage < len(net.stages):
        existing = f"0 to {len(net.stages) - 1}" if net.stages else "none (an affine function)"
        raise ValueError(f"stage: expected {existing}, received {stage}")
    if np.shape(x) != net.input_shape:
        raise ValueError(f"x: expected shape {net.input_shape}, received {np.shape(x)}")
    require_finite(x, "x")
    if rows is not None:
        rows = _existing(rows, net.stages[stage].size) + sum(s.size for s in net.stages[:stage])
    if is_traced(x) or net.is_traced:
        flat = jnp.ravel(x)
        found = _linearised(net, flat, stage) if rows is None else _rows(net, flat, rows)
        return _around(flat, *found)
    with jax.enable_x64(True):
        flat = np.asarray(x, np.float64).ravel()
        if rows is None:
            found = net.jitted(_linearised, static=(1,))(flat, stage)
            return _around(flat, *map(np.asarray, found))
        step = max(1, min(_together(net), len(rows)))
        normal, value = np.zeros((len(rows), flat.size)), np.zeros(len(rows))
        for first in range(0, len(rows), step):
            # The last step is filled up, so that all steps have one shape.
            some = np.minimum(first + np.arange(step), len(rows) - 1)
            normal[some], value[some] = net.jitted(_rows)(flat, rows[some])
        return _around(flat, normal, value)


def require_traced(net: Any) -> None:
    """ValueError unless net comes from ``jr.trace``."""
    if not isinstance(net, CPAFunction):
        raise ValueError(f"net: expected the result of jr.trace, received {type(net).__name__}")


def _existing(rows: Any, size: int) -> np.ndarray:
    found = np.asarray(rows)
    if found.ndim != 1 or found.dtype.kind not in "iu" or ((found < 0) | (found >= size)).any():
        raise ValueError(f"rows: expected (m,) integers from 0 to {size - 1}, received {rows}")
    return found.astype(np.int64)


def _around(flat: Any, normal: Any, value: Any) -> Hyperplanes:
    return Hyperplanes(normal, flat, -value[:, None])


def _linearised(net: CPAFunction, flat: Any, stage: int) -> tuple[Any, Any]:
    """(J, z) of one stage."""

    def values(point):
        return net.switching_values(point.reshape(net.input_shape))[stage]

    wide = net.stages[stage].size > flat.size
    return (jax.jacfwd if wide else jax.jacrev)(values)(flat), values(flat)


def _rows(net: CPAFunction, flat: Any, rows: Any) -> tuple[Any, Any]:
    """(J, z) of these switching values, counted through all stages."""

    def values(point):
        return jnp.concatenate(net.switching_values(point.reshape(net.input_shape)))

    value, pull = jax.vjp(values, flat)
    unit = jax.nn.one_hot(jnp.asarray(rows), len(value), dtype=value.dtype)
    return jax.vmap(lambda u: pull(u)[0])(unit), value[jnp.asarray(rows)]


def stage_hits(net: CPAFunction, windows: Window, *, progress: bool | None = None) -> StageHits:
    """Units of every stage that refine each window, by the criterion of the parent region.

    Stage s, valid when the whole window lies in its parent region:

        |z_i(c)| < sum_j r_j |(J B)_ij|,

    z the switching values at the window's centre and J their Jacobian, from k Jacobian-vector
    products in bounded memory (J is never stored). float64, not certified: a decision within
    rounding of a tie can go either way (the first layer's exact decisions are ``count_hits``).
    Under jit or vmap of the windows or of what the network closes over: traced arrays, in the
    windows' precision. Every comparison of a maximum over many candidates counts, also one between
    candidates that lose; the ``hits`` of ``count_regions`` count changes of the maximisers only.

    Args:
      net: from ``jr.trace``.
      windows: flat centres (..., d) with d the size of an input; full-dimensional or slices.
      progress: draw a bar; default: on a terminal, for calls that last.

    Raises:
      ValueError: windows of another input dimension.

    Source: MATHEMATICS.md, transfer through depth.
    """
    hits = _measured(net, windows, _hits, progress)[0]
    before = hits.cumsum(axis=-1) - hits
    xp = jnp if is_traced(hits) else np
    return StageHits(xp.where(before == 0, hits, -1), before == 0)


def critical_scales(
    net: CPAFunction, windows: Window, *, progress: bool | None = None
) -> CriticalScales:
    """How far each window can be scaled before each unit refines it.

    The window with radii t r is refined by unit i, inside its parent region, exactly when t > t_i:

        t_i = min |z(c)| / sum_j r_j |(J B)_j|   over the unit's switching values z,

    J their Jacobian at the centre. With r = 1 that is the l_inf distance from the centre to the
    unit's nearest pulled-back hyperplane. So the hits of stage s at every t <= limit[..., s] follow
    by counting, ``(scales[s] < t).sum(axis=-1)``, and agree with ``stage_hits``. The factors of a
    unit beyond the limit are those of the map that is affine near the centre. float64, not
    certified; traced as in ``stage_hits``.

    Args:
      net: from ``jr.trace``.
      windows: flat centres (..., d) with d the size of an input; full-dimensional or slices.
      progress: draw a bar; default: on a terminal, for calls that last.

    Raises:
      ValueError: windows of another input dimension.

    Source: MATHEMATICS.md, transfer through depth.
    """
    scales = _measured(net, windows, _scales, progress)
    xp = jnp if is_traced(scales) else np
    smallest = [xp.full(windows.batch_shape, xp.inf, dtype=s.dtype) for s in scales[:1]]
    for stage in scales[:-1]:
        smallest.append(xp.minimum(smallest[-1], stage.min(axis=-1, initial=xp.inf)))
    none = xp.zeros((*windows.batch_shape, 0))
    return CriticalScales(scales, xp.stack(smallest, axis=-1) if scales else none)


# Reaches -----------------------------------------------------------------------------------------
#
# The reach of a switching value over a window is sum_j r_j |(J B)_j|, summed over a few directions
# at a time.

Finish = Callable[[CPAFunction, Any, Any], tuple[Any, ...]]


def _scales(net: CPAFunction, values: Any, reach: Any) -> tuple[Any, ...]:
    """Per stage (windows, units). In floating point too, |z| / reach < 1 exactly if |z| < reach."""

    def one(value, reached, stage):
        scale = jnp.where(reached > 0, abs(value) / reached, jnp.inf)
        if np.array_equal(stage.unit, np.arange(stage.size)):
            return scale
        return jax.ops.segment_min(scale.T, stage.unit, stage.units).T

    return tuple(map(one, values, reach, net.stages))


def _hits(net: CPAFunction, values: Any, reach: Any) -> tuple[Any, ...]:
    """(windows, S) in a tuple."""
    scales = _scales(net, values, reach)
    return (jnp.stack([(s < 1).sum(axis=-1) for s in scales], axis=-1),)


def _measured(
    net: CPAFunction, windows: Window, finish: Finish, progress: bool | None
) -> tuple[Any, ...]:
    """finish(values, reach) of all windows, each result (..., m)."""
    require_traced(net)
    require_window(windows)
    d = math.prod(net.input_shape)
    if windows.input_dimension != d:
        raise ValueError(
            f"expected windows in {d} dimensions (inputs of shape {net.input_shape}), received "
            f"{windows.input_dimension}"
        )
    shape = windows.batch_shape
    traced = is_traced(windows) or net.is_traced
    if not net.stages:
        none = (jnp if traced else np).zeros((*shape, 0), int)
        return (none,) if finish is _hits else ()
    if traced:
        found = _all_windows(net, windows.reshape(-1), finish)
    else:
        with jax.enable_x64(True):
            # Copies: jax remembers known arrays in the precision of an earlier trace.
            wide = jax.tree.map(lambda v: np.array(v, np.float64), windows)
            found = _in_steps(net, wide.reshape(-1), finish, progress)
    return tuple(v.reshape(*shape, v.shape[-1]) for v in found)


def _together(net: CPAFunction) -> int:
    """How many tangents of the whole network fit in the working set."""
    width = sum(s.size for s in net.stages) + math.prod(net.input_shape)
    return max(1, _BYTES // (8 * 4 * width))


def _plan(net: CPAFunction, count: int, k: int) -> tuple[int, int]:
    """Windows a step, the same number in all of them, and directions a step."""
    steps = max(1, -(-count // _together(net)))
    rows = max(1, -(-count // steps))
    return rows, max(1, min(k, _together(net) // rows))


def _operands(flat: Window) -> tuple[Any, Any, Any]:
    """Centres (n, d), radii (n, k), bases: None, (d, k) or (n, d, k)."""
    zero = (np if isinstance(flat.center, np.ndarray) else jnp).zeros(flat.dimension)
    return flat.points(zero.astype(flat.center.dtype)), flat.radii(), flat.basis


def _in_steps(
    net: CPAFunction, flat: Window, finish: Finish, progress: bool | None
) -> tuple[np.ndarray, ...]:
    """The results of known windows, from calls of one shape each."""
    (points, radii, bases), k = _operands(flat), flat.dimension
    count = len(points)
    rows, chunk = _plan(net, count, k)
    calls = -(-k // (chunk * _STEPS))
    axes = np.arange(calls * -(-k // (chunk * calls)) * chunk).reshape(calls, -1, chunk)
    advance = net.jitted(_advanced, static=(0,))
    found = []
    with watching(count * k, progress, of="directions") as watch:
        for first in range(0, count, rows):
            some = (first + np.arange(rows)) % count  # the last step is filled up
            basis = bases if bases is None or bases.ndim == 2 else bases[some]
            window = points[some], radii[some], basis
            results, reach = (), None
            if calls > 1:
                reach = tuple(np.zeros((rows, s.size)) for s in net.stages)
            for call in axes:
                results, reach = jax.block_until_ready(advance(finish, reach, *window, call))
                watch(first * k + min(rows, count - first) * min(k, int(call[-1, -1]) + 1))
            found.append([np.asarray(v)[: count - first] for v in results])
    if not found:
        empty = [np.zeros((0, s.size)) for s in net.stages]
        found = [finish(net, empty, empty)]
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def _all_windows(net: CPAFunction, flat: Window, finish: Finish) -> tuple[Any, ...]:
    """The same of traced windows or a traced network, in one piece."""
    (points, radii, bases), k = _operands(flat), flat.dimension
    bases = None if bases is None else jnp.asarray(bases.astype(points.dtype))
    rows, chunk = _plan(net, len(points), k)
    axes = np.arange(-(-k // chunk) * chunk).reshape(-1, chunk)
    own = [bases] if bases is not None and bases.ndim == 3 else []

    def one(operands):
        center, radius, *basis = operands
        basis = basis[0][None] if basis else bases
        found, _ = _advanced(net, finish, None, center[None], radius[None], basis, axes)
        return tuple(v[0] for v in found)

    return jax.lax.map(one, (points, radii, *own), batch_size=rows)


def _advanced(
    net: CPAFunction, finish: Finish, reach: Any, centers: Any, radii: Any, bases: Any, axes: Any
) -> tuple[tuple[Any, ...], Any]:
    """Results of the directions so far, and their reach; axes (steps, chunk) are the next ones.

    One function for all calls, so that it is compiled once; reach None: the only call.
    """
    own = 0 if bases is not None and bases.ndim == 3 else None
    start = reach
    if reach is None:
        start = tuple(jnp.zeros((len(centers), s.size), centers.dtype) for s in net.stages)
    over_windows = jax.vmap(lambda *w: _one_window(net, *w), in_axes=(0, 0, 0, own, None))
    values, after = over_windows(start, centers, radii, bases, axes)
    return finish(net, values, after), None if reach is None else after


def _one_window(
    net: CPAFunction, reach: Any, center: Any, radius: Any, basis: Any, axes: Any
) -> tuple[Any, Any]:
    """Switching values at the centre, and reach plus what the axes add to it."""

    def values(flat):
        return net.switching_values(flat.reshape(net.input_shape))

    at_center, slopes_along = jax.linearize(values, center)
    k = radius.shape[0]

    def add(reach, axis):
        weight = jnp.where(axis < k, radius[jnp.minimum(axis, k - 1)], 0)
        if basis is None:
            directions = jax.nn.one_hot(axis, k, dtype=center.dtype)
        else:
            directions = basis[:, jnp.minimum(axis, k - 1)].T
        slopes = jax.vmap(slopes_along)(directions)
        return tuple(r + weight @ abs(s) for r, s in zip(reach, slopes, strict=True)), None

    return at_center, jax.lax.scan(add, reach, axes)[0]

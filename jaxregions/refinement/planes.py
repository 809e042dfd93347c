"""Hits and regions of one layer's hyperplanes in windows: jitted, with every float decision proven.

What floats cannot decide is said so, (sample, window) by (sample, window), and ``measure_exactly``
decides it in rational arithmetic.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from jaxregions.arrangements import count_arrangement, region_bracket
from jaxregions.hyperplanes import Hyperplanes, count_hits
from jaxregions.refinement.draws import Batch, Sample
from jaxregions.refinement.finely import counted, far_apart, finely, through_one_point
from jaxregions.refinement.placed import Own, own_numbers, place
from jaxregions.refinement.rounded import (
    chords,
    count_inside,
    intervals,
    reached,
    table,
    triple_points,
)
from jaxregions.refinement.scenes import (
    at_point,
    at_slices,
    in_one_disc,
    in_own_slices,
    in_shared_slice,
    share_plane,
)
from jaxregions.windows import Window

__all__ = [
    "Sample",
    "measure_again",
    "measure_exactly",
    "measure_hits",
    "measure_planes",
    "share_plane",
]

_CHUNK = 64  # samples of one step: their crossings stay in the cache
_FEW = 8  # of them are measured again at a time


def measure_planes(
    planes: Hyperplanes,
    windows: Window,
    *,
    simple: bool = False,
    coplanar: bool = False,
    again: bool = True,
) -> Sample:
    """Hits and region counts of one draw's hyperplanes in all windows; jitted and vmapped at will.

    k = 1, 2: N = 1 + [k = 2] m + sum over distinct crossing points v in the window of (hyperplanes
    through v - 1), k = 1: of 1; hyperplanes with offset exactly 0 meet in one point. k >= 3: the
    bracket 1 + m <= N <= sum_{j <= k} C(m, j). A float decision within its rounding bound, three
    hyperplanes through one point or two that may coincide leave ``decided`` False. Under vmap over
    samples, no crossing is looked at where all offsets of a chunk of samples are 0.

    Args:
      planes: n units, K offsets each, taken as float64.
      windows: W, flat.
      simple: take it as known that no two hyperplanes coincide and no three meet in a point, but
        for offset exactly 0: so it is with probability one for weights that have a density.
      coplanar: the windows are slices of one plane; see ``share_plane``.
      again: k = 2: measure in float64 what integers leave open. Compiling that takes as long as
        all the rest; ``measure_again`` does it apart.

    Raises:
      ValueError: windows with other than one leading axis, 64-bit numbers not enabled.

    Source: MATHEMATICS.md, window criterion and regions.
    """
    if len(windows.batch_shape) != 1:
        raise ValueError(
            f"windows: expected one leading axis, received the shape {windows.batch_shape}"
        )
    return _program(simple, True, coplanar, again)(*_arrays(planes, windows))


def measure_hits(planes: Hyperplanes, windows: Window) -> tuple[Any, Any]:
    """Only (hits, decided) of ``measure_planes``, (W,) each."""
    sample = _program(True, False, False, False)(*_arrays(planes, windows))
    return sample.hits, sample.decided


@functools.partial(jax.jit, static_argnames="simple")
def measure_again(planes: Hyperplanes, windows: Window, *, simple: bool) -> Sample:
    """``measure_planes`` of P draws in one window each, in float64 throughout; (P,).

    Args:
      planes: leading axis (P,).
      windows: leading axis (P,).
    """
    batch = Batch.of(_arrays(planes, windows.reshape(-1, 1)))
    found = finely(batch.each(own_numbers), batch, simple)
    return jax.tree.map(lambda a: a[:, 0], found)


def measure_exactly(planes: Hyperplanes, windows: Window) -> Sample:
    """``measure_planes`` on the host, decided in rational arithmetic where floats cannot; (W,).

    Regions are counted for k = 3 too.

    Args:
      planes: concrete, shared by all windows or one family per window (leading axes (W,)).
      windows: concrete, flat.
    """
    hits = count_hits(planes, windows).hits
    if windows.dimension <= 3:
        lower = upper = count_arrangement(planes, windows).regions.astype(np.float64)
    else:
        lower, upper = region_bracket(hits, windows.dimension)
    return Sample(hits.astype(np.int32), lower, upper, np.ones(hits.shape, bool))


def _arrays(planes: Hyperplanes, windows: Window) -> tuple[tuple[Any, Any, Any], Window]:
    """Normals, point and offsets, and the windows, all float64."""
    if jnp.result_type(float) != np.float64:
        raise ValueError("expected 64-bit numbers (jax.enable_x64), received a 32-bit context")
    arrays = planes.normal, planes.point, planes.offset
    return jax.tree.map(lambda a: jnp.asarray(a, np.float64), (arrays, windows))


@functools.lru_cache(maxsize=8)
def _program(simple: bool, regions: bool, coplanar: bool, again: bool):
    """``measure_planes`` of one draw, which batches by chunks."""

    def block(batch):
        own = batch.each(own_numbers)
        if not regions:
            return _only_hits(own, batch)
        if batch.windows.dimension == 2 and own.offset.shape[-1] > 1:
            found = _rounded(own, batch, simple, coplanar)
            return _again(found, batch, simple, coplanar) if again else found
        return finely(own, batch, simple)

    @custom_vmap
    def one(planes, windows):
        batch = Batch.of(jax.tree.map(lambda a: jnp.asarray(a)[None], (planes, windows)))
        return jax.tree.map(lambda a: a[0], block(batch))

    @one.def_vmap
    def many(axis_size, in_batched, planes, windows):
        arrays, tree = jax.tree.flatten((planes, windows))
        batch = Batch(arrays, tuple(jax.tree.leaves(tuple(in_batched))), tree)
        if axis_size <= _CHUNK or axis_size % _CHUNK:
            out = block(batch)
        else:
            split = batch.with_moving(lambda a: a.reshape(-1, _CHUNK, *a.shape[1:]))

            def step(moving):
                rest = iter(moving)
                return block(split.with_moving(lambda _: next(rest)))

            moving = [a for a, m in zip(split.arrays, split.moving, strict=True) if m]
            out = jax.lax.map(step, moving)
            out = jax.tree.map(lambda a: a.reshape(axis_size, *a.shape[2:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return one


def _behind(some: Any, function: Any, *arrays: Any) -> Any:
    """function(*arrays); where not ``some``, nothing is there: zeros, all proven.

    A branch, so that XLA makes the arrays once and not for every use.
    """

    def nothing(*arrays):
        return jax.tree.map(
            lambda a: jnp.full(a.shape, a.dtype == bool, a.dtype), jax.eval_shape(function, *arrays)
        )

    return jax.lax.cond(some, function, nothing, *arrays)


def _only_hits(own: Own, batch: Batch) -> Sample:
    def found(own):
        placed = batch.each(place, own)
        return Sample(placed.hits, placed.hits, placed.hits, placed.sure)

    return _behind(jnp.any(jnp.isfinite(own.offset)), found, own)


def _rounded(own: Own, batch: Batch, simple: bool, coplanar: bool) -> Sample:
    """Windows of dimension 2: in integers what they can decide, one plane after the other."""
    unit = batch.units
    rows = len(unit) // 2 if simple else len(unit) - 1
    full = batch.windows.basis is None

    def concurrent(own):
        placed = batch.each(place, own)
        none, proven = jax.vmap(lambda p: far_apart(p, unit, simple))(placed)
        return counted(own, placed, placed.hits, none, placed.sure & proven, simple)

    def spread(own):
        if full:
            where, scenes = batch.each(at_point), batch.each(in_one_disc, own)
        else:
            where = batch.each(at_slices)
            scenes = batch.each(in_shared_slice if coplanar else in_own_slices, own, where.known)
        planes = scenes.value.shape[1]
        if planes == 1:
            found = one_plane(jax.tree.map(lambda a: a[:, 0], scenes))
        else:
            found = jax.lax.map(one_plane, jax.tree.map(lambda a: a.swapaxes(0, 1), scenes))
            found = jax.tree.map(lambda a: a[..., 0].T, found)
        return counted(own, where, *found, simple=simple)

    def one_plane(scene):
        lines = jax.vmap(chords)(*scene[:6])
        some = jnp.any(jnp.isfinite(scene.value))
        return _behind(some, tabulated, lines, scene.centre, scene.radius)

    def tabulated(lines, centre, radius):
        at = jax.vmap(lambda c: table(c, unit, rows))(lines)
        middle, width = jax.vmap(intervals)(lines, centre, radius)
        hits, inside, sure = _behind(reached(width), compared, at, middle, width)
        return hits, inside, sure & lines.sure[:, None]

    def compared(at, middle, width):
        hits, inside, sure = jax.vmap(count_inside)(at, middle, width)
        if not simple:
            sure = sure & ~jax.vmap(triple_points)(at)[:, None]
        return hits, inside, sure

    if not full:
        return spread(own)
    return jax.lax.cond(through_one_point(own), concurrent, spread, own)


def _again(sample: Sample, batch: Batch, simple: bool, coplanar: bool) -> Sample:
    """The sample, and what it leaves open measured finely: a few (draw, plane) pairs at a time."""
    draws, count = sample.decided.shape
    planes = 1 if batch.windows.basis is None or coplanar else count
    few = min(draws * planes, _FEW)
    windows = np.arange(count).reshape(planes, -1)
    sample = jax.tree.map(lambda a: a.reshape(draws * planes, -1), sample)

    def some(state):
        left, sample = state
        index = jnp.nonzero(left, size=few, fill_value=len(left))[0]
        part = batch.some(index // planes, jnp.asarray(windows)[index % planes])
        found = finely(part.each(own_numbers), part, simple)
        sample = jax.tree.map(lambda a, b: a.at[index].set(b, mode="drop"), sample, found)
        return left.at[index].set(False, mode="drop"), sample

    left = ~jnp.all(sample.decided, -1)
    _, sample = jax.lax.while_loop(lambda state: jnp.any(state[0]), some, (left, sample))
    return jax.tree.map(lambda a: a.reshape(draws, count), sample)

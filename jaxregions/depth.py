"""Deeper layers seen from the input: pulled-back hyperplanes and hits inside parent regions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions._records import is_traced, require_finite
from jaxregions.hyperplanes import Hyperplanes
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["StageHits", "pull_back", "stage_hits"]

_BYTES = 128 << 20  # working set of one step over windows


class StageHits(NamedTuple):
    """Per window and stage, (..., S).

    in_parent: bool, the whole window lies in one parent region of that stage: no switching
        hyperplane of an earlier stage refines it. Always True for the first stage.
    hits: int64, units with a pulled-back switching hyperplane that refines the window; -1 where
        ``in_parent`` is False and the criterion makes no claim.
    """

    hits: Any
    in_parent: Any


def pull_back(net: CPAFunction, x: Any, *, stage: int) -> Hyperplanes:
    """A stage's switching hyperplanes in input coordinates, around the point x.

    Inside the parent region of x the switching values are z(x) + J (y - x): normals J, the rows of
    the Jacobian, point x, offsets -z(x). One hyperplane per switching value. float64; under jit or
    vmap in the precision of x.

    Args:
      net: from ``jr.trace``.
      x: (*input_shape), an interior point of its parent region.
      stage: 0 .. number of stages - 1.

    Raises:
      ValueError: a point of another shape, a point that is not finite, a stage that does not exist.

    Source: README, "The mathematics", transfer through depth.
    """
    if not 0 <= stage < len(net.stages):
        existing = f"0 to {len(net.stages) - 1}" if net.stages else "none (an affine function)"
        raise ValueError(f"stage: expected {existing}, received {stage}")
    if np.shape(x) != net.input_shape:
        raise ValueError(f"x: expected shape {net.input_shape}, received {np.shape(x)}")
    require_finite(x, "x")
    if is_traced(x) or net.is_traced:
        return Hyperplanes(*_linearised(net, jnp.ravel(x), stage))
    with jax.enable_x64(True):
        flat = np.asarray(x, np.float64).ravel()
        return Hyperplanes(*map(np.asarray, net.jitted(_linearised, static=(1,))(flat, stage)))


def _linearised(net: CPAFunction, flat: Any, stage: int) -> tuple[Any, Any, Any]:
    """(J, x, -z) of one stage."""

    def values(point):
        return net.switching_values(point.reshape(net.input_shape))[stage]

    wide = net.stages[stage].size > flat.size
    normal = (jax.jacfwd if wide else jax.jacrev)(values)(flat)
    return normal, flat, -values(flat)[:, None]


def stage_hits(net: CPAFunction, windows: Window) -> StageHits:
    """Units of every stage that refine each window, by the criterion of the parent region.

    Stage s, valid when the whole window lies in its parent region:

        |z_i(c)| < sum_j r_j |(J B)_ij|,

    z the switching values at the window's centre and J their Jacobian, from k Jacobian-vector
    products. float64, not certified: a decision within rounding of a tie can go either way (the
    first layer's exact decisions are ``count_hits``). Under jit or vmap of the windows or of what
    the network closes over: traced arrays, in the windows' precision.

    Args:
      net: from ``jr.trace``.
      windows: flat centres (..., d) with d the size of an input; full-dimensional or slices.

    Raises:
      ValueError: windows of another input dimension.

    Source: README, "The mathematics", transfer through depth.
    """
    d = math.prod(net.input_shape)
    if windows.input_dimension != d:
        raise ValueError(
            f"expected windows in {d} dimensions (inputs of shape {net.input_shape}), received "
            f"{windows.input_dimension}"
        )
    if is_traced(windows) or net.is_traced:
        return _all_windows(net, windows)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: np.asarray(v, np.float64), windows)
        hits, in_parent = map(np.asarray, net.jitted(_all_windows)(wide))
        return StageHits(hits.astype(np.int64), in_parent)


def _all_windows(net: CPAFunction, windows: Window) -> StageHits:
    shape, stages, flat = windows.batch_shape, len(net.stages), windows.reshape(-1)
    if not stages:
        return StageHits(jnp.zeros((*shape, 0), int), jnp.ones((*shape, 0), bool))
    points = flat.points(jnp.zeros(flat.dimension, flat.center.dtype))
    width = sum(s.size for s in net.stages) + points.shape[-1]
    step = max(1, _BYTES // (8 * 4 * width))

    def one(operands):
        center, radius, *basis = operands
        return _one_window(net, center, radius, basis[0] if basis else flat.basis)

    own = [] if flat.basis is None or flat.basis.ndim == 2 else [flat.basis]
    operands = (points, flat.radii(), *own)
    hits = jax.lax.map(one, operands, batch_size=min(step, max(1, len(points))))
    before = jnp.cumsum(hits, axis=1) - hits
    hits = jnp.where(before == 0, hits, -1)
    return StageHits(hits.reshape(*shape, stages), (before == 0).reshape(*shape, stages))


def _one_window(net: CPAFunction, center: Any, radius: Any, basis: Any) -> Any:
    """Hits of every stage in one window, (S,), each by its linearisation at the centre."""

    def values(flat):
        return net.switching_values(flat.reshape(net.input_shape))

    def add_axis(j, reach):
        direction = jnp.zeros_like(center).at[j].set(1.0) if basis is None else basis[:, j]
        _, slopes = jax.jvp(values, (center,), (direction,))
        return tuple(r + radius[j] * abs(s) for r, s in zip(reach, slopes, strict=True))

    at_center = values(center)
    start = tuple(jnp.zeros_like(v) for v in at_center)
    reach = jax.lax.fori_loop(0, radius.shape[0], add_axis, start)
    counts = [
        jax.ops.segment_max((abs(v) < r).astype(int), stage.unit, stage.units).sum()
        for v, r, stage in zip(at_center, reach, net.stages, strict=True)
    ]
    return jnp.stack(counts)

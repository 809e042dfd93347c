"""Deeper layers seen from the input: pulled-back hyperplanes and hits inside parent regions."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions._records import is_traced
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

    hits: np.ndarray
    in_parent: np.ndarray


def pull_back(net: CPAFunction, x: Any, *, stage: int) -> Hyperplanes:
    """A stage's switching hyperplanes in input coordinates, around the point x.

    Inside the parent region of x the switching values are z(x) + J (y - x): normals J, the rows of
    the Jacobian, point x, offsets -z(x). One hyperplane per switching value. float64.

    Args:
      net: from ``jr.trace``.
      x: (*input_shape), an interior point of its parent region.
      stage: 0 .. number of stages - 1.

    Raises:
      ValueError: a point of another shape, a stage that does not exist.

    Source: README, "The mathematics", transfer through depth.
    """
    if not 0 <= stage < len(net.stages):
        raise ValueError(f"stage: expected 0 to {len(net.stages) - 1}, received {stage}")
    if np.shape(x) != net.input_shape:
        raise ValueError(f"x: expected shape {net.input_shape}, received {np.shape(x)}")

    def values(flat):
        return net.switching_values(flat.reshape(net.input_shape))[stage]

    with jax.enable_x64(True):
        flat = jnp.asarray(x, float).ravel()
        normal, offset = jax.jacobian(values)(flat), -values(flat)[:, None]
        if is_traced(x, normal, offset):
            return Hyperplanes(normal, flat, offset)
        return Hyperplanes(np.asarray(normal), np.asarray(flat), np.asarray(offset))


def stage_hits(net: CPAFunction, windows: Window) -> StageHits:
    """Units of every stage that refine each window, by the criterion of the parent region.

    Stage s, valid when the whole window lies in its parent region:

        |z_i(c)| < sum_j r_j |(J B)_ij|,

    z the switching values at the window's centre and J their Jacobian, from k Jacobian-vector
    products. float64, not certified: a decision within rounding of a tie can go either way (the
    first layer's exact decisions are ``count_hits``).

    Args:
      net: from ``jr.trace``.
      windows: flat centres (..., d) with d the size of an input; full-dimensional or slices.

    Raises:
      ValueError: windows of another input dimension.

    Source: README, "The mathematics", transfer through depth.
    """
    d = int(np.prod(net.input_shape))
    if windows.input_dimension != d:
        raise ValueError(
            f"expected windows in {d} dimensions (inputs of shape {net.input_shape}), received "
            f"{windows.input_dimension}"
        )
    shape, stages = windows.batch_shape, len(net.stages)
    flat = windows.reshape(-1)
    with jax.enable_x64(True):
        as64 = partial(np.asarray, dtype=np.float64)
        basis = None if flat.basis is None else as64(flat.basis)
        shared = basis is None or basis.ndim == 2
        points, radii = as64(flat.points(np.zeros(flat.dimension))), as64(flat.radii())
        count = jax.jit(jax.vmap(partial(_one_window, net), in_axes=(0, 0, None if shared else 0)))
        width = sum(s.size for s in net.stages) + d
        step = max(1, min(len(points), _BYTES // (8 * 4 * width)))
        hits = np.zeros((len(points), stages), np.int64)
        for start in range(0, len(points), step):
            # The last step is moved back so that every step has one shape.
            rows = slice(max(0, min(start, len(points) - step)), None)
            rows = slice(rows.start, rows.start + step)
            hits[rows] = count(points[rows], radii[rows], basis if shared else basis[rows])
    in_parent = np.concatenate(
        [np.ones((len(hits), min(stages, 1)), bool), np.cumsum(hits, axis=1)[:, :-1] == 0], axis=1
    )
    hits = np.where(in_parent, hits, -1)
    return StageHits(hits.reshape(*shape, stages), in_parent.reshape(*shape, stages))


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
    return jnp.stack(counts) if counts else jnp.zeros(0, int)

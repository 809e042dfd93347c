"""The local region density, and a differentiable surrogate of the hit count."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions._records import build, is_traced
from jaxregions.hyperplanes import Hyperplanes, _check_pair, _values
from jaxregions.windows import Window, require_window

__all__ = ["log_density", "soft_hits"]

_PAIRS = 1 << 20  # window-hyperplane pairs of one step


def log_density(regions: Any, windows: Window, *, count: str = "activation") -> np.ndarray:
    """log rho = log N - log volume(W), natural logarithm, per window.

    Volumes are k-dimensional and in input space: prod_j 2 r_j, for slices times sqrt(det B'B).
    Bounds on N give the same bounds on log rho.

    Args:
      regions: counts or bounds N >= 1, shape (...,) or broadcastable to the windows' leading axes;
        or what ``count_regions`` returned.
      windows: (...,) windows.
      count: of the latter, "activation" or "affine" regions.

    Raises:
      ValueError: a count below 1 (affine regions that were not counted too), shapes that do not
        broadcast.

    Source: MATHEMATICS.md, density.
    """
    require_window(windows)
    if count not in ("activation", "affine"):
        raise ValueError(f"count: expected 'activation' or 'affine', received {count!r}")
    if hasattr(regions, "activation_regions"):
        name, regions = f"{count}_regions", getattr(regions, f"{count}_regions")
        if regions is None:
            raise ValueError(f"regions: expected {name}, received None: count_regions(affine=True)")
    regions = np.asarray(regions, np.float64)
    if not (regions >= 1).all():
        raise ValueError(f"regions: expected counts >= 1, received {np.min(regions)}")
    try:
        shape = np.broadcast_shapes(regions.shape, windows.batch_shape)
    except ValueError as error:
        raise ValueError(
            f"regions: expected a shape that fits {windows.batch_shape}, received {regions.shape}"
        ) from error
    return np.broadcast_to(np.log(regions) - np.asarray(windows.log_volume()), shape)


def soft_hits(planes: Hyperplanes, windows: Window, temperature: Any) -> jax.Array:
    """A smooth count of the hyperplanes that refine each window, to train with.

    A hyperplane has the signed scale t = (w . (c - p) - o) / sum_j r_j |(B'w)_j|: it refines the
    open window exactly when |t| < 1, and touches the window scaled by |t|. It is counted as

        q(t) = P(|t + T Z| < 1) = (1 - exp(-2/T)) sigma((1 - t)/T) sigma((1 + t)/T),

    Z logistic, sigma the logistic function, T the temperature. So T is the width, in radii of the
    window, of the band around its boundary in which a hyperplane counts in part; t does not change
    when the weights, or the inputs and windows together, are rescaled. As T -> 0 the sum tends to
    ``count_hits(planes, windows)``: hits + tangencies / 2, a tangent hyperplane (|t| = 1) being
    half way between counting and not.

    The gradient with respect to normals, points, offsets, centres, radii and temperature is that of
    the sum of q. q is smooth in t, also where a hyperplane passes through the centre; t has kinks
    where a coordinate (B'w)_j is 0, and there the mean of the one-sided derivatives is taken. It is
    0, never NaN, where there is no hyperplane (an offset of +inf, B'w = 0). Far from a window it
    falls like exp(-|t|/T): start with T of order 1 to attract distant hyperplanes.

    Works under jit, vmap and grad, in memory that does not grow with windows times units, in the
    inputs' precision.

    Args:
      planes: (n, d) shared by all windows, or (..., n, d) with the windows' leading axes.
      windows: (...,) windows.
      temperature: T > 0, a number.

    Returns:
      (...,) floats between 0 and the number of hyperplanes n K.

    Raises:
      ValueError: planes and windows of different input dimension or leading shapes, a temperature
        that is not a positive number in the inputs' precision.

    Source: MATHEMATICS.md, window criterion.
    """
    _check_pair(planes, windows)
    dtype = jnp.result_type(*jax.tree.leaves((planes, windows)), jnp.float32)
    if np.shape(temperature) != ():
        raise ValueError(f"temperature: expected a number, received shape {np.shape(temperature)}")
    if not is_traced(temperature):
        smallest = float(jnp.finfo(dtype).tiny)
        if not smallest <= float(temperature) < np.inf:
            raise ValueError(f"temperature: expected a finite number > 0, received {temperature}")
    shape, axes = windows.batch_shape, len(windows.batch_shape)
    shared = planes.normal.ndim == 2
    if not shared:
        planes = jax.tree.map(lambda v: v.reshape(-1, *v.shape[axes:]), planes)
    planes, flat, width = jax.tree.map(
        lambda v: jnp.asarray(v, dtype), (planes, windows.reshape(-1), temperature)
    )
    return _soft_counts(planes, flat, width, shared).reshape(shape)


@partial(jax.jit, static_argnames="shared")
def _soft_counts(planes: Hyperplanes, flat: Window, temperature: Any, shared: bool) -> Any:
    """(W,), some windows at a time, whose pairs the backward pass computes again."""
    common = flat.basis if flat.basis is not None and flat.basis.ndim == 2 else None
    own = flat if common is None else _with_basis(flat, None)

    @jax.checkpoint
    @jax.default_matmul_precision("highest")
    def one(pair):
        some, window = pair
        window = window if common is None else _with_basis(window, common)
        return _soft_count(planes if shared else some, window, temperature)

    step = max(1, _PAIRS // max(1, math.prod(planes.offset.shape[-2:])))
    return jax.lax.map(one, (None if shared else planes, own), batch_size=step)


def _soft_count(planes: Hyperplanes, window: Window, temperature: Any) -> Any:
    """The sum of q(t) over the hyperplanes in one window."""
    present = jnp.isfinite(planes.offset)
    known = build(
        Hyperplanes,
        normal=planes.normal,
        point=planes.point,
        offset=jnp.where(present, planes.offset, 0.0),
    )
    value, reach = _values(known, window)
    # Beyond this scale q and its gradient underflow; there 1 / reach could be infinite.
    finest = jnp.finfo(value.dtype).smallest_subnormal
    far = 2 - temperature * math.log(finest)
    reach = reach[..., None]
    present = present & (reach > 0) & (abs(value) < far * reach)
    # The quotient of numbers of order 1, whose derivatives are finite for the smallest normals too.
    unit = jax.lax.stop_gradient(jnp.where(present, reach, 1.0))
    scale = jnp.where(present, value / unit, 0.0) / jnp.where(present, reach / unit, 1.0)
    inner = jax.nn.sigmoid((1 - scale) / temperature) * jax.nn.sigmoid((1 + scale) / temperature)
    return jnp.where(present, -jnp.expm1(-2 / temperature) * inner, 0.0).sum()


def _with_basis(window: Window, basis: Any) -> Window:
    return build(
        Window,
        center=window.center,
        radius=window.radius,
        basis=basis,
        anchor=window.anchor,
        shift=window.shift,
    )

"""Estimators of the same means with less variance: bias integrated out, scrambled Sobol normals.

``benchmarks/refinement.py`` measures what each is worth at equal cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from jaxregions._records import is_traced
from jaxregions.windows import Window

__all__ = ["hits_given_weights", "regions_given_weights", "sobol_normals"]


def hits_given_weights(
    normal: Any, windows: Window, cdf: Callable[[Any], Any], *, breakpoints: Any = (0.0,)
) -> Any:
    """E[hits | weights] of a layer without BatchNorm whose raw biases have the given cdf; (W,).

        sum_i sum_k F(tau_k - w_i . c + rho_i) - F(tau_k - w_i . c - rho_i),

    rho_i = sum_j r_j |(B'w_i)_j|.

    The biases are independent of the weights (not of each other). A Rao-Blackwell estimator: its
    variance is never above that of the hits of a drawn bias. Differentiable, jitted and vmapped at
    will; floats.

    Args:
      normal: (n, d).
      windows: W, flat.
      cdf: F, on arrays; continuous, as a bias with atoms may make a hyperplane tangent.
      breakpoints: tau_1 .. tau_K.

    Raises:
      ValueError: shapes that do not fit.

    Source: MATHEMATICS.md, window criterion and expected refinement.
    """
    value, slopes = _projected(normal, windows)
    reach = jnp.einsum("wnk,wk->wn", abs(slopes), windows.radii(), precision="highest")
    away = jnp.asarray(breakpoints) - value[..., None]
    chance = cdf(away + reach[..., None]) - cdf(away - reach[..., None])
    return chance.sum((1, 2))


def regions_given_weights(
    normal: Any, windows: Window, cdf: Callable, density: Callable, shift: Any
) -> Any:
    """Unbiased for E[N | weights] of a ReLU layer without BatchNorm, k = 1 or 2; (W,).

    Biases i.i.d. with density f = F'. In one dimension N = 1 + hits almost surely. In two, the
    crossing of lines i, j lies at x for the biases -w_i . x, -w_j . x, so (Kac and Rice)

        E[N | w] = 1 + E[hits | w] + integral of sum_{i<j} |det(w_i, w_j)| f(-w_i . x) f(-w_j . x)

    over W, and x uniform in W, times the volume, estimates the integral: a quadratic form, with no
    crossing to look for. For slices, in their coordinates. Its variance is small where a window is
    small next to the biases' deviation over |w|; where it is large, exact counts vary less.

    Args:
      normal: (n, d); windows: W, flat.
      cdf, density: F and f, on arrays.
      shift: (W, k), uniform in (-1, 1): where x lies in its window, in units of the radii.

    Raises:
      ValueError: k > 2, shapes that do not fit.

    Source: MATHEMATICS.md, expected refinement.
    """
    if windows.dimension > 2:
        raise ValueError(f"expected windows of dimension 1 or 2, received {windows.dimension}")
    count = 1 + hits_given_weights(normal, windows, cdf)
    if windows.dimension == 1:
        return count
    if shift.shape != (*windows.batch_shape, 2):
        raise ValueError(f"shift: expected {(*windows.batch_shape, 2)}, received {shift.shape}")
    value, slopes = _projected(normal, windows)
    radius = windows.radii()
    at = value + jnp.einsum("wnk,wk->wn", slopes, shift * radius, precision="highest")
    weight = density(-at)
    volume = 4 * radius[:, 0] * radius[:, 1]
    x, y = slopes[..., 0], slopes[..., 1]
    if windows.basis is None:
        x, y = x[:1], y[:1]
    rate = abs(x[:, :, None] * y[:, None] - y[:, :, None] * x[:, None])
    rate = jnp.broadcast_to(rate, (len(value), *rate.shape[1:])) if len(rate) > 1 else rate[0]
    form = "wi,wij,wj->w" if rate.ndim == 3 else "wi,ij,wj->w"
    return count + volume * jnp.einsum(form, weight, rate, weight, precision="highest") / 2


def _projected(normal: Any, windows: Window) -> tuple[Any, Any]:
    """w_i . c, (W, n), and B'w_i, (W, n, k)."""
    normal = jnp.asarray(normal)
    if normal.ndim != 2 or normal.shape[1] != windows.input_dimension:
        raise ValueError(
            f"normal: expected shape (n, {windows.input_dimension}), received {normal.shape}"
        )
    if len(windows.batch_shape) != 1:
        raise ValueError(f"windows: expected one leading axis, received {windows.batch_shape}")
    centre = jnp.asarray(windows.points(np.zeros(windows.dimension)))
    value = jnp.einsum("wd,nd->wn", centre, normal, precision="highest")
    slopes = normal[None]
    if windows.basis is not None:
        slopes = jnp.einsum("nd,...dk->...nk", normal, windows.basis, precision="highest")
    return value, jnp.broadcast_to(slopes, (len(value), len(normal), windows.dimension))


def sobol_normals(seed: Any, count: int, dimension: int) -> np.ndarray:
    """Standard normals (count, dimension) from a scrambled Sobol sequence, NumPy float64.

    Every row is standard normal; rows are dependent, so that means over all of them vary less than
    over independent rows. A standard error takes several seeds.

    Args:
      seed: of the scrambling.
      count: a power of two; dimension: at most 21,201.

    Raises:
      ValueError: another count or dimension, traced arguments.
    """
    if is_traced(seed) or count < 1 or count & (count - 1):
        raise ValueError(f"count: expected a power of two and a concrete seed, received {count}")
    if not 1 <= dimension <= qmc.Sobol.MAXDIM:
        raise ValueError(f"dimension: expected 1 to {qmc.Sobol.MAXDIM}, received {dimension}")
    points = qmc.Sobol(dimension, scramble=True, rng=np.random.default_rng(seed)).random(count)
    # A point at 0 would be an infinite normal; the grid is 2^-30 or finer.
    return ndtri(np.clip(points, np.finfo(np.float64).tiny, None))

"""The batch centroid and, in closed form, the hyperplanes of a first BatchNorm layer."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxregions._records import is_traced, record, require_finite
from jaxregions.activations import PiecewiseLinear, relu
from jaxregions.exact import rationals
from jaxregions.hyperplanes import Hyperplanes, refines
from jaxregions.tracing import marks
from jaxregions.windows import Window

__all__ = ["BatchHyperplanes", "as_batch", "batch_hyperplanes", "centroid"]


def as_batch(batch: Any, name: str = "batch") -> Any:
    """batch as a NumPy float64 array, or as it is when traced.

    Raises:
      ValueError: not real numbers, no axis for the examples, no examples, NaN or infinity.
    """
    if not is_traced(batch):
        try:
            batch = np.asarray(batch, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: expected real numbers, received {type(batch).__name__}"
            ) from error
        require_finite(batch, name)
    else:
        batch = jnp.asarray(batch)
    if not jnp.issubdtype(batch.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floating-point numbers, received {batch.dtype}")
    if batch.ndim == 0 or batch.shape[0] == 0:
        raise ValueError(
            f"{name}: expected shape (N, ...) with N >= 1 examples, received {batch.shape}"
        )
    return batch


def centroid(batch: Any) -> Any:
    """The mean of the batch's rows, p = (x_1 + ... + x_N) / N.

    Every sum is correctly rounded before the division, so the result does not depend on the order
    of the rows. It is the point on which every first-layer BatchNorm hyperplane is centred.

    Args:
      batch: (N, *input_shape), N >= 1.

    Returns:
      (*input_shape,), NumPy float64; for a traced batch ``jnp.mean`` in its own precision.

    Raises:
      ValueError: an empty batch, NaN or infinity, a sum beyond the float64 range.

    Source: MATHEMATICS.md, recentring.
    """
    batch = as_batch(batch)
    if is_traced(batch):
        return jnp.mean(batch, axis=0)
    try:
        return marks.center(batch)
    except OverflowError as error:
        raise ValueError(
            "batch: expected column sums in the float64 range, received an overflow"
        ) from error


@record
class BatchHyperplanes:
    """The hyperplanes of a first layer's n BatchNorm units, given the batch.

    reference: w_i . (x - p) = 0, where unit i equals its batch mean; offsets (n, 1).
    switching: w_i . (x - p) = s_i (tau_k - beta_i) / gamma_i, where its output is the breakpoint
      tau_k; offsets (n, K).
    std: s_i = sqrt(var_i + epsilon), (n,), the biased batch variance.

    Source: MATHEMATICS.md, recentring.
    """

    reference: Hyperplanes
    switching: Hyperplanes
    std: Any

    def refines(self, windows: Window) -> Any:
        """Which switching hyperplanes cut the open windows: bool (..., n, K), strict criterion."""
        return refines(self.switching, windows)


def batch_hyperplanes(
    kernel: Any,
    batch: Any,
    *,
    gamma: Any = None,
    beta: Any = None,
    activation: PiecewiseLinear = relu,
    epsilon: float = 1e-5,
) -> BatchHyperplanes:
    """Hyperplanes of phi(BatchNorm(x @ kernel + bias)); the raw bias cancels.

    With the batch centroid p and s_i = sqrt(biased variance of batch @ w_i + epsilon), unit i
    switches at tau_k on the hyperplane

        w_i . (x - p) = s_i (tau_k - beta_i) / gamma_i.

    The offset is exactly 0.0 where tau_k = beta_i: those hyperplanes all share the point p. It is
    +inf, no hyperplane, where gamma_i = 0 or w_i = 0. Works under jit, and under vmap over kernels.

    Args:
      kernel: (in, out); column i is w_i.
      batch: (N, in), N >= 2.
      gamma: BatchNorm's scale, a number or (out,); None is 1.
      beta: BatchNorm's shift, a number or (out,); None is 0.
      activation: phi, whose K breakpoints count.
      epsilon: BatchNorm's epsilon, >= 0.

    Returns:
      Computed in NumPy float64; what depends on a traced argument, in jax in its precision.

    Raises:
      ValueError: shapes that do not fit, a batch of one example, NaN or infinity, epsilon < 0, or
        epsilon = 0 with a unit that is constant on the batch though w_i != 0.

    Source: MATHEMATICS.md, recentring.
    """
    batch = as_batch(batch)
    kernel = _numbers(kernel, "kernel")
    if kernel.ndim != 2 or batch.ndim != 2 or batch.shape[1] != kernel.shape[0]:
        raise ValueError(
            "expected kernel (in, out) and batch (N, in), received "
            f"{kernel.shape} and {batch.shape}"
        )
    if batch.shape[0] < 2:
        raise ValueError(
            "batch: expected at least two examples for batch statistics, received a batch of one "
            "example"
        )
    units = kernel.shape[1]
    gamma = _per_unit(1.0 if gamma is None else gamma, units, "gamma")
    beta = _per_unit(0.0 if beta is None else beta, units, "beta")
    if not isinstance(activation, PiecewiseLinear):
        raise ValueError(
            f"activation: expected a PiecewiseLinear, received {type(activation).__name__}"
        )
    if not is_traced(epsilon) and not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon: expected a finite number >= 0, received {epsilon}")

    xp: Any = jnp if is_traced(kernel, batch, gamma, beta, epsilon) else np
    point = centroid(batch)
    deviation = (batch - point) @ kernel  # of order 1 whatever the batch's mean
    deviation = deviation - deviation.mean(axis=0)
    variance = (deviation**2).mean(axis=0)
    present = (kernel != 0).any(axis=0)
    if xp is np and epsilon == 0:
        _require_spread(kernel, batch, deviation, present)
    std = xp.sqrt(variance + epsilon)

    taus = np.asarray(activation.breakpoints, np.float64)
    lift = taus - beta[:, None]
    active = present & (gamma != 0)
    with np.errstate(over="ignore"):
        offset = std[:, None] * lift / xp.where(gamma == 0, 1.0, gamma)[:, None]
    # An offset that overflows is a hyperplane beyond every float64 window.
    offset = xp.where(active[:, None] & xp.isfinite(offset), offset, np.inf)
    offset = xp.where(active[:, None] & (lift == 0), 0.0, offset)
    reference = xp.where(present, 0.0, np.inf)[:, None]
    return BatchHyperplanes(
        reference=Hyperplanes(kernel.T, point, reference),
        switching=Hyperplanes(kernel.T, point, offset),
        std=std,
    )


def _numbers(value: Any, name: str) -> Any:
    """NumPy float64, finite; traced values as they are."""
    if is_traced(value):
        return jnp.asarray(value)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, received {type(value).__name__}") from error
    require_finite(array, name)
    return array


def _per_unit(value: Any, units: int, name: str) -> Any:
    array = _numbers(value, name)
    if array.shape not in ((), (units,)):
        raise ValueError(f"{name}: expected shape () or {(units,)}, received {array.shape}")
    return jnp.broadcast_to(array, (units,)) if is_traced(array) else np.full(units, array)


def _require_spread(kernel, batch, deviation, present) -> None:
    """ValueError for a unit that is constant on the batch in exact arithmetic."""
    reach = (abs(kernel).T @ abs(batch).max(axis=0)) * 8 * len(kernel) * np.finfo(np.float64).eps
    for i in np.flatnonzero(present & (abs(deviation).max(axis=0) <= reach)):
        values = rationals(batch) @ rationals(kernel[:, i])
        if all(value == values[0] for value in values):
            raise ValueError(
                f"epsilon: expected > 0, received 0 with unit {i}, which is constant on the batch"
            )

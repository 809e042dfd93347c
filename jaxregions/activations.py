"""Continuous piecewise-linear activation functions, given by their breakpoint tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp

__all__ = [
    "PiecewiseLinear",
    "abs_",
    "hard_sigmoid",
    "hard_tanh",
    "identity",
    "leaky_relu",
    "prelu",
    "relu",
    "relu6",
]


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear:
    """A continuous piecewise-linear function phi of one variable.

    phi(0) = ``value_at_zero`` and phi' = slopes[k] between breakpoints[k-1] and breakpoints[k].
    It is evaluated as

        phi(x) = constant + sum_k slopes[k] * clip(x, breakpoints[k-1], breakpoints[k]),

    which is continuous whatever the rounding of the table and loses nothing where phi saturates.
    A value is hashable, so it can be a field of a Flax module, and calling it works under jit,
    vmap and grad.

    Args:
      breakpoints: K finite, strictly increasing numbers tau_1 < ... < tau_K (K may be 0).
      slopes: K + 1 finite numbers; neighbours differ, so that every breakpoint is real.
      value_at_zero: phi(0).
      name: what to call it in reports.

    Raises:
      ValueError: lengths that do not fit, unsorted or repeated breakpoints, equal adjacent slopes,
        or a number that is not finite.

    Source: MATHEMATICS.md: phi, tau_k, a_k.
    """

    breakpoints: tuple[float, ...]
    slopes: tuple[float, ...]
    value_at_zero: float = 0.0
    name: str = "piecewise_linear"

    def __init__(
        self,
        breakpoints: Sequence[float],
        slopes: Sequence[float],
        value_at_zero: float = 0.0,
        name: str = "piecewise_linear",
    ):
        taus = tuple(float(t) for t in breakpoints)
        values = tuple(float(a) for a in slopes)
        if len(values) != len(taus) + 1:
            raise ValueError(
                f"expected one slope more than breakpoints, received {len(taus)} breakpoints "
                f"and {len(values)} slopes"
            )
        if not all(map(math.isfinite, (*taus, *values, value_at_zero))):
            raise ValueError(
                "expected finite breakpoints, slopes and value_at_zero, received "
                f"{taus}, {values}, {value_at_zero}"
            )
        if any(left >= right for left, right in pairwise(taus)):
            raise ValueError(f"expected strictly increasing breakpoints, received {taus}")
        if any(left == right for left, right in pairwise(values)):
            raise ValueError(
                f"expected adjacent slopes to differ at every breakpoint, received {values}"
            )
        object.__setattr__(self, "breakpoints", taus)
        object.__setattr__(self, "slopes", values)
        object.__setattr__(self, "value_at_zero", float(value_at_zero))
        object.__setattr__(self, "name", name)

    def __call__(self, x: jax.Array) -> jax.Array:
        """phi(x), elementwise; same shape and dtype as x."""
        edges = (-math.inf, *self.breakpoints, math.inf)
        constant, total = self.value_at_zero, None
        for slope, low, high in zip(self.slopes, edges, edges[1:], strict=False):
            if slope == 0.0:
                continue
            constant -= slope * min(max(0.0, low), high)
            piece = x if low == -math.inf else jnp.maximum(x, low)
            piece = piece if high == math.inf else jnp.minimum(piece, high)
            piece = piece if slope == 1.0 else slope * piece
            total = piece if total is None else total + piece
        if total is None:
            total = jnp.zeros_like(x)
        return total if constant == 0.0 else total + constant


relu = PiecewiseLinear((0.0,), (0.0, 1.0), name="relu")
relu6 = PiecewiseLinear((0.0, 6.0), (0.0, 1.0, 0.0), name="relu6")
hard_tanh = PiecewiseLinear((-1.0, 1.0), (0.0, 1.0, 0.0), name="hard_tanh")
hard_sigmoid = PiecewiseLinear((-3.0, 3.0), (0.0, 1 / 6, 0.0), 0.5, name="hard_sigmoid")
abs_ = PiecewiseLinear((0.0,), (-1.0, 1.0), name="abs")
identity = PiecewiseLinear((), (1.0,), name="identity")


def leaky_relu(negative_slope: float = 0.01) -> PiecewiseLinear:
    """phi(x) = x for x >= 0, negative_slope * x below; negative_slope != 1 (ValueError)."""
    return PiecewiseLinear((0.0,), (negative_slope, 1.0), name="leaky_relu")


def prelu(negative_slope: float) -> PiecewiseLinear:
    """The learned leaky ReLU with its slope fixed at the trained value (ValueError if it is 1)."""
    return PiecewiseLinear((0.0,), (negative_slope, 1.0), name="prelu")

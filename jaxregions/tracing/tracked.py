"""A value with what is known of its error: entry by entry, and its norms."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.exact import gamma, unit_roundoff
from jaxregions.tracing.flatten import is_float

__all__ = [
    "FLOOR",
    "SMALL",
    "TINY",
    "UP",
    "Tracked",
    "U",
    "as_float",
    "error_of",
    "magnitude",
    "most",
    "nonzero",
    "norm2",
    "norm_of",
    "scale_of",
    "tightened",
    "underflow",
]

U = unit_roundoff(np.float64)
# Above every absolute error of underflow, multiples of 2^-1022, and its square is a normal number:
# an error is either 0 or so large that a sum of squares shows it. Entries of a value below it that
# are not 0 have an error.
TINY = 2.0**-500
SMALL = 2.0**-400  # if no term is below, a sum is zero or far above TINY
FLOOR = 2.0**-100
UP = 1 + 16 * U  # covers the roundings of a bound's own formula


class Tracked(NamedTuple):
    """A value of the program and what is known of its error.

    error: bound on |value - exact| per entry, of the value's shape; None: exact. For predicates: 1
      where the exact one may differ.
    norm: bound on the Euclidean norm of value - exact; None: that of ``error``.
    scale: bound on the Euclidean norm of value; None: look at the value.
    most: bound on every |value - exact|; None: the largest ``error``.
    """

    value: Any
    error: Any = None
    norm: Any = None
    scale: Any = None
    most: Any = None


def as_float(value: Any) -> Any:
    return value if is_float(value) else jnp.asarray(value, float)


def magnitude(value: Any) -> Any:
    return abs(as_float(value))


def error_of(t: Tracked, shape: tuple[int, ...] | None = None) -> Any:
    shape = jnp.shape(t.value) if shape is None else shape
    return jnp.broadcast_to(0.0 if t.error is None else t.error, shape)


def norm2(value: Any, xp: Any = jnp) -> Any:
    """Euclidean norm, rounded up; 0 only if every entry is 0 (of values: or below ``TINY``)."""
    size = max(math.prod(jnp.shape(value)), 1)
    root = xp.sqrt(xp.sum(value * value))
    return root * (1 + gamma(size + 8, np.float64)) + xp.where(root > 0, underflow(size), 0.0)


def _largest(error: Any) -> Any:
    """As integers, which have the same order: XLA makes the maximum of floats one by one."""
    bits = jax.lax.bitcast_convert_type(abs(jnp.asarray(error, jnp.float64)), jnp.int64)
    return jax.lax.bitcast_convert_type(jnp.max(bits, initial=0), jnp.float64)


def most(t: Tracked) -> Any:
    """A bound on every |value - exact|."""
    if t.error is None:
        return 0.0
    return t.most if t.most is not None else _largest(t.error)


def tightened(t: Tracked) -> Tracked:
    """With the norms of ``error`` where they are below those that the rules inferred."""
    if t.error is None:
        return t
    norms = [norm2(t.error)] + ([] if t.norm is None else [t.norm])
    return t._replace(norm=reduce(jnp.minimum, norms), most=jnp.minimum(most(t), norms[0]))


def norm_of(t: Tracked, shape: tuple[int, ...]) -> Any:
    if t.error is None:
        return 0.0
    return t.norm if t.norm is not None else norm2(error_of(t, shape))


def scale_of(t: Tracked, shape: tuple[int, ...]) -> Any:
    own = norm2(as_float(t.value)) if t.scale is None else t.scale
    repeats = math.prod(shape) / max(math.prod(jnp.shape(t.value)), 1)
    return own if repeats == 1 else own * (math.sqrt(repeats) * UP)


def nonzero(t: Tracked) -> Any:
    """Where the exact value may differ from zero."""
    return (magnitude(t.value) > 0) if t.error is None else (magnitude(t.value) + t.error > 0)


def underflow(size: int) -> float:
    return math.sqrt(size) * TINY

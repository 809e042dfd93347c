"""Two primitives that carry "here the batch enters" and "here its mean is subtracted" in a jaxpr.

In floating point ``enter`` is the identity and ``subtract_mean`` is a subtraction. What they add is
meaning that survives jit, vmap, grad and any wrapping function: an exact evaluator that meets
``subtract_mean`` can recompute the mean of z over the batch in rational arithmetic, by evaluating
the equations between the matching ``enter`` and z at every row of the batch.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["center", "enter", "enter_p", "new_token", "subtract_mean", "subtract_mean_p"]

enter_p = Primitive("enter_batch")
subtract_mean_p = Primitive("subtract_batch_mean")
_tokens = itertools.count()


def new_token() -> int:
    """A number that ties one ``enter`` to the ``subtract_mean`` calls behind it."""
    return next(_tokens)


def center(batch: np.ndarray) -> np.ndarray:
    """The float64 point p that every first-layer mean is taken at: the mean of the rows.

    Every sum is correctly rounded before the division.

    Args:
      batch: (N, *input_shape), float64.

    Raises:
      OverflowError: a sum beyond the float64 range.
    """
    count, *shape = batch.shape
    sums = [math.fsum(column) for column in batch.reshape(count, -1).T]
    return (np.array(sums, np.float64) / count).reshape(shape)


def enter(x: jax.Array, batch: jax.Array, *, token: int) -> jax.Array:
    """x, marked as the point that the batch's rows stand for.

    Args:
      x: (*input_shape).
      batch: (N, *input_shape).
      token: from ``new_token``.
    """
    return enter_p.bind(x, batch, token=token)


def subtract_mean(
    z: jax.Array,
    mean: jax.Array,
    mask: jax.Array | None = None,
    *,
    token: int,
    axes: tuple[int, ...],
) -> jax.Array:
    """z - mean, marked as the subtraction of a batch mean.

    Args:
      z: a representation of one example, with the model's batch axis of length 1.
      mean: what floating point subtracts; as many axes as z, broadcast against it.
      mask: None, or (N, ...) one mask per example, broadcast against z: the entries that count.
      token: of the ``enter`` that the batch came in by.
      axes: axes of z that the mean runs over, beside the batch's rows; negative ones count
        from the end.
    """
    axes = tuple(sorted(a % z.ndim - z.ndim for a in axes))
    mean = jnp.broadcast_to(mean, (1,) * (z.ndim - jnp.ndim(mean)) + jnp.shape(mean))
    operands = (z, mean) if mask is None else (z, mean, mask)
    return subtract_mean_p.bind(*operands, token=token, axes=axes)


def _define(primitive: Primitive, compute) -> None:
    """Implementation, shapes and lowering of a primitive that is plain jnp in floating point."""
    primitive.def_impl(lambda *operands, **_: jax.jit(compute)(*operands))
    primitive.def_abstract_eval(
        lambda z, *rest, **_: jax.core.ShapedArray(
            jnp.broadcast_shapes(z.shape, *(r.shape for r in rest[:1]))
            if compute is _minus
            else z.shape,
            z.dtype,
        )
    )
    mlir.register_lowering(
        primitive, mlir.lower_fun(lambda *operands, **_: compute(*operands), multiple_results=False)
    )


def _first(x, *_):
    return x


def _minus(z, mean, *_):
    return z - mean.astype(z.dtype)


_define(enter_p, _first)
_define(subtract_mean_p, _minus)


def _enter_jvp(primals, tangents, **params):
    return enter_p.bind(*primals, **params), ad.instantiate_zeros(tangents[0])


def _subtract_jvp(primals, tangents, **params):
    out = subtract_mean_p.bind(*primals, **params)
    z, mean = (ad.instantiate_zeros(t) for t in tangents[:2])
    return out, jnp.broadcast_to(z - mean.astype(out.dtype), out.shape)


ad.primitive_jvps[enter_p] = _enter_jvp
ad.primitive_jvps[subtract_mean_p] = _subtract_jvp


def _batch(primitive, *places):
    """vmap adds a leading axis to z, and one at these places to the other operands.

    Of length 1 where an operand is shared, so that nested vmaps stay aligned.
    """

    def rule(operands, dims, **params):
        size = next(o.shape[d] for o, d in zip(operands, dims, strict=True) if d is not None)
        z, dim = operands[0], dims[0]
        z = jnp.broadcast_to(z, (size, *z.shape)) if dim is None else jnp.moveaxis(z, dim, 0)
        rest = [
            jnp.expand_dims(o, place) if d is None else jnp.moveaxis(o, d, place)
            for o, d, place in zip(operands[1:], dims[1:], places, strict=False)
        ]
        return primitive.bind(z, *rest, **params), 0

    return rule


_AFTER_EXAMPLES = 1  # batch and mask keep the examples in front
batching.primitive_batchers[enter_p] = _batch(enter_p, _AFTER_EXAMPLES)
batching.primitive_batchers[subtract_mean_p] = _batch(subtract_mean_p, 0, _AFTER_EXAMPLES)

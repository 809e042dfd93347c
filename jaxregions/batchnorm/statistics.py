"""BatchNorm as three small functions: record a batch's statistics, replay them, or leave it out.

All three have the signature ``normalize(z, layer, mask) -> y`` and serve linen and nnx alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions._records import is_traced
from jaxregions.tracing import marks

Normalize = Callable[[Any, "Layer", Any], Any]


class Layer(NamedTuple):
    """What a BatchNorm module says about one call. gamma and beta: None, or one per feature."""

    axis: int | tuple[int, ...]
    epsilon: float
    dtype: Any
    gamma: Any
    beta: Any


class Statistics(NamedTuple):
    """One BatchNorm call on the batch; mean and inv_std keep the reduced axes, of length 1."""

    mean: Any
    inv_std: Any
    mask: Any
    shape: tuple[int, ...]


def affine(z: Any, layer: Layer, _mask: Any = None) -> Any:
    """gamma z + beta: BatchNorm without its normalisation."""
    _reached.set(True)
    gamma, beta = _parameters(z.shape, layer)
    y = z if gamma is None else z * gamma
    y = y if beta is None else y + beta
    return jnp.asarray(y, _output_dtype(z, layer))


def recorder(tape: list[Statistics], size: int, *, traced: bool) -> Normalize:
    """Normalise a batch of ``size`` examples and append the statistics to the tape, in call order.

    y = gamma (z - mean) / sqrt(variance + epsilon) + beta, biased two-pass variance.
    """

    def normalize(z, layer, mask=None):
        _reached.set(True)
        axes = _reduced_axes(z.shape, layer)
        if is_traced(z) and not traced:
            raise ValueError(
                "expected BatchNorm calls outside of transformations, received one inside a "
                "lifted or jitted part of the model (nn.remat, nn.jit, nn.scan, nn.vmap, nnx.jit, "
                "...); condition the same model without it, its parameters are the same"
            )
        if mask is not None:
            mask = jnp.asarray(mask, bool)
            mask = mask.reshape((1,) * (z.ndim - mask.ndim) + mask.shape)
        _require_two(z.shape, axes, mask, size)
        wide, mean, variance, constant = _moments(z, mask, axes)
        centred = wide - mean
        if not traced:
            mean, variance, constant = map(np.asarray, (mean, variance, constant))
            mean, variance = mean.astype(np.float64), variance.astype(np.float64)
            if layer.epsilon == 0 and (constant | (variance == 0)).any():
                raise ValueError(
                    "epsilon: expected > 0, received 0 with a BatchNorm feature that is constant "
                    "on the batch"
                )
            if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
                raise ValueError(
                    "expected finite batch statistics, received infinity or NaN at BatchNorm call "
                    f"{len(tape)}"
                )
            inv_std = 1.0 / np.sqrt(variance + layer.epsilon)
        else:
            inv_std = 1.0 / jnp.sqrt(variance + layer.epsilon)
        mask = mask if traced or mask is None or is_traced(mask) else np.asarray(mask)
        tape.append(Statistics(mean, inv_std, mask, z.shape))
        return _scale(centred, inv_std, layer, z)

    return normalize


@partial(jax.jit, static_argnums=2)
def _moments(z, mask, axes):
    """z in float32 or wider, its mean and two-pass variance, where it is constant."""
    wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    mean = wide.mean(axes, keepdims=True, where=mask)
    variance = ((wide - mean) ** 2).mean(axes, keepdims=True, where=mask)
    return wide, mean, variance, z.max(axes, keepdims=True) == z.min(axes, keepdims=True)


def replayer(tape: list[Statistics], size: int, token: int) -> tuple[Normalize, Callable[[], None]]:
    """Normalise one example with the recorded statistics; and a check that all were used."""
    entries = iter(tape)

    def normalize(z, layer, _mask=None):
        _reached.set(True)
        entry = next(entries, None)
        if entry is None:
            raise ValueError(
                f"expected {len(tape)} BatchNorm calls, as on the batch, received one more"
            )
        axis = _batch_axis(entry, z.shape, layer, size)
        mask = None if entry.mask is None else _mask_per_example(entry, axis, size)
        wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        axes = tuple(a - z.ndim for a in _reduced_axes(z.shape, layer))
        centred = marks.subtract_mean(
            wide, jnp.asarray(entry.mean, wide.dtype), mask, token=token, axes=axes
        )
        return _scale(centred, jnp.asarray(entry.inv_std, wide.dtype), layer, z)

    def finish():
        left = sum(1 for _ in entries)
        if left:
            raise ValueError(
                f"expected {len(tape)} BatchNorm calls, as on the batch, received "
                f"{len(tape) - left}"
            )

    return normalize, finish


_reached: ContextVar[bool] = ContextVar("_reached", default=False)


def require_super(call: Callable[[], Any], layer_type: type) -> Any:
    """call(), the own ``__call__`` of a BatchNorm subclass, which must reach BatchNorm's."""
    before = _reached.set(False)
    try:
        result = call()
        reached = _reached.get()
    finally:
        _reached.reset(before)
    if not reached:
        raise ValueError(
            f"expected {layer_type.__name__}.__call__ to call BatchNorm.__call__, received a "
            "subclass that normalises by itself"
        )
    _reached.set(True)
    return result


def _scale(centred, inv_std, layer, z):
    gamma, beta = _parameters(centred.shape, layer)
    y = centred * inv_std
    y = y if gamma is None else y * gamma
    y = y if beta is None else y + beta
    return jnp.asarray(y, _output_dtype(z, layer))


def _output_dtype(z, layer):
    if layer.dtype is not None:
        return jax.dtypes.canonicalize_dtype(layer.dtype)
    return jnp.result_type(z, *(v for v in (layer.gamma, layer.beta) if v is not None))


def _feature_axes(rank: int, layer: Layer) -> set[int]:
    axes = layer.axis if isinstance(layer.axis, Iterable) else (layer.axis,)
    return {a % rank for a in axes}


def _reduced_axes(shape, layer) -> tuple[int, ...]:
    features = _feature_axes(len(shape), layer)
    return tuple(a for a in range(len(shape)) if a not in features)


def _feature_shape(shape, layer) -> tuple[int, ...]:
    features = _feature_axes(len(shape), layer)
    return tuple(n if a in features else 1 for a, n in enumerate(shape))


def _parameters(shape, layer) -> tuple[Any, Any]:
    """gamma and beta, to broadcast against a z of this shape."""
    features = _feature_shape(shape, layer)

    def one(name, value):
        if value is None:
            return None
        if value.size != math.prod(features):
            raise ValueError(
                f"variables: expected a BatchNorm {name} of {math.prod(features)} features, "
                f"received shape {value.shape}"
            )
        return value.reshape(features)

    return one("scale", layer.gamma), one("bias", layer.beta)


def _require_two(shape, axes, mask, size) -> None:
    count = math.prod(shape[a] for a in axes)
    if size < 2 or count < 2:
        raise ValueError(
            "batch: expected at least two examples for BatchNorm, received a batch of "
            f"{size} example(s) with {count} value(s) per feature"
        )
    if mask is not None and not is_traced(mask):
        kept = np.broadcast_to(np.asarray(mask), shape).sum(axes).min(initial=count)
        if kept < 2:
            raise ValueError(
                "mask: expected at least two values per feature for BatchNorm, received a mask "
                f"that keeps {kept}"
            )


def _batch_axis(entry: Statistics, shape, layer, size: int) -> int:
    """The axis that holds the examples: ``size`` times as long on the batch as for one example."""
    differing = [
        a for a, (whole, one) in enumerate(zip(entry.shape, shape, strict=False)) if whole != one
    ]
    features = _feature_axes(len(shape), layer)
    if (
        len(entry.shape) != len(shape)
        or len(differing) != 1
        or differing[0] in features
        or entry.shape[differing[0]] != size * shape[differing[0]]
    ):
        raise ValueError(
            f"expected a BatchNorm input with {size} times as many values on one reduced axis on "
            f"the batch as for one example, received {entry.shape} and {tuple(shape)}"
        )
    return differing[0]


def _mask_per_example(entry: Statistics, axis: int, size: int):
    """The mask with the examples in front, (N, ...), to broadcast against one example's z."""
    whole = entry.shape[axis]
    shape = list(entry.mask.shape)
    shape[axis] = whole
    xp: Any = np if isinstance(entry.mask, np.ndarray) else jnp  # a known mask stays a constant
    split = (*shape[:axis], size, whole // size, *shape[axis + 1 :])
    mask = xp.broadcast_to(entry.mask, shape).reshape(split)
    return jnp.asarray(xp.moveaxis(mask, axis, 0))

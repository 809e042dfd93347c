"""BatchNorm in flax.nnx models, reached by swapping its class in a clone of the model."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from flax import nnx

from jaxregions.batchnorm.statistics import Layer, Normalize, affine, require_super

_normalize: ContextVar[Normalize] = ContextVar("_normalize")


@contextmanager
def intercept(normalize: Normalize) -> Iterator[None]:
    """A context in which every ``OnBatch`` call returns normalize(z, layer, mask)."""
    before = _normalize.set(normalize)
    try:
        yield
    finally:
        _normalize.reset(before)


class OnBatch(nnx.BatchNorm):
    """A BatchNorm that is answered by the enclosing ``intercept``."""

    def __call__(self, x, use_running_average=None, *, mask=None):  # noqa: ARG002
        return _normalize.get()(x, _layer(self), mask)


class WithoutBatchNorm(nnx.BatchNorm):
    """A BatchNorm that is z -> gamma z + beta."""

    def __call__(self, x, use_running_average=None, *, mask=None):  # noqa: ARG002
        return affine(x, _layer(self), mask)


def swap(model: nnx.Module, layer_type: type[nnx.BatchNorm]) -> nnx.Module:
    """A clone of the model, its own state, whose BatchNorms are of layer_type."""
    clone = nnx.clone(model)
    for _, node in nnx.iter_graph(clone):
        if isinstance(node, nnx.BatchNorm) and not isinstance(node, WithoutBatchNorm):
            object.__setattr__(node, "__class__", _swapped(type(node), layer_type))
    return clone


def call(model: nnx.Module, method: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's output; method: None, a name, or a function (its bound instance is replaced)."""
    if method is None:
        return model(*args, **kwargs)  # pyright: ignore[reportCallIssue]
    if isinstance(method, str):
        return getattr(model, method)(*args, **kwargs)
    return getattr(method, "__func__", method)(model, *args, **kwargs)


@functools.cache
def _swapped(cls: type, layer_type: type) -> type:
    """layer_type, or a subclass of cls whose super().__call__ is layer_type's."""
    if cls is nnx.BatchNorm:
        return layer_type

    def __call__(self, *args, **kwargs):
        return require_super(lambda: cls.__call__(self, *args, **kwargs), cls)

    return types.new_class(
        cls.__name__, (cls, layer_type), exec_body=lambda space: space.update(__call__=__call__)
    )


def _layer(module: nnx.BatchNorm) -> Layer:
    return Layer(
        axis=module.axis,
        epsilon=module.epsilon,
        dtype=module.dtype,
        gamma=None if module.scale is None else module.scale[...],
        beta=None if module.bias is None else module.bias[...],
    )

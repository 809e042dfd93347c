"""BatchNorm in flax.linen models, reached with method interceptors: no change to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from jaxregions.batchnorm.statistics import Layer, Normalize, affine, require_super

_BATCH_NORM = nn.BatchNorm.__call__.__wrapped__  # what an interceptor sees behind flax's wrapper


def intercept(normalize: Normalize):
    """A context in which every linen BatchNorm call returns normalize(z, layer, mask)."""
    return _intercept(lambda _next, module, z, mask: normalize(z, _layer(module), mask))


@dataclasses.dataclass(frozen=True)
class LinenWithoutBatchNorm:
    """A linen model whose BatchNorms are z -> gamma z + beta, on the same variables.

    Source: MATHEMATICS.md, recentring.
    """

    model: nn.Module

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """The original model's variables: same tree, same bits for the same key."""
        with _intercept(_create_then_affine):
            return self.model.init(rngs, *args, **kwargs)

    def apply(
        self,
        variables: Mapping[str, Any],
        *args: Any,
        method: Callable | str | None = None,
        rngs: Any = None,
        mutable: Any = False,
        **kwargs: Any,
    ) -> Any:
        """As flax's ``apply``; ``batch_stats`` are neither read nor changed and may be absent."""
        with intercept(affine):
            return self.model.apply(
                variables, *args, method=method, rngs=rngs, mutable=mutable, **kwargs
            )


def _create_then_affine(create, module, z, mask):
    create()
    return affine(z, _layer(module), mask)


def _intercept(respond):
    """Answer linen BatchNorm calls with respond(original call, module, z, mask)."""

    def interceptor(next_fun, args, kwargs, context):
        def call():
            return next_fun(*args, **kwargs)

        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
            return call()
        if context.orig_method.func is not _BATCH_NORM:
            return require_super(call, type(module))
        z, mask = _call_arguments(*args, **kwargs)
        return respond(call, module, z, mask)

    return nn.intercept_methods(interceptor)


def _call_arguments(x, use_running_average=None, *, mask=None):  # noqa: ARG001
    return x, mask


def _layer(module: nn.BatchNorm) -> Layer:
    return Layer(
        axis=module.axis,
        epsilon=module.epsilon,
        dtype=module.dtype,
        gamma=_parameter(module, "scale") if module.use_scale else None,
        beta=_parameter(module, "bias") if module.use_bias else None,
    )


def _parameter(module: nn.BatchNorm, name: str) -> Any:
    value = nn.unbox(module.get_variable("params", name))
    if value is None:
        path = "/".join((*module.path, name))
        raise ValueError(f"variables: expected params to hold {path}, received none")
    return value

"""Frozen records that are pytrees: a user's call validates, jax's rebuilding does not."""

from __future__ import annotations

import dataclasses
from typing import Any, dataclass_transform

import jax
import jax.core
import numpy as np


@dataclass_transform(frozen_default=True)
def record(cls: type) -> type:
    """A frozen dataclass registered as a pytree whose leaves are its fields.

    jax rebuilds records with tracers, None or sentinels in them (jit, vmap, tree_map), so
    rebuilding goes around ``__init__``, where the validation is.
    """
    cls = dataclasses.dataclass(frozen=True, init="__init__" not in cls.__dict__, eq=False)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten_with_keys(value):
        return [(jax.tree_util.GetAttrKey(n), getattr(value, n)) for n in names], None

    def flatten(value):
        return [getattr(value, n) for n in names], None

    def unflatten(_, children):
        return build(cls, **dict(zip(names, children, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def build(cls: type, **fields: Any) -> Any:
    """An instance with these fields and no validation."""
    value = object.__new__(cls)
    for name, child in fields.items():
        object.__setattr__(value, name, child)
    return value


def is_traced(*values: Any) -> bool:
    """Whether any leaf is a tracer, so that its numbers cannot be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree_util.tree_leaves(values))


def as_array(value: Any, name: str, *, keep_single: bool = False) -> Any:
    """value as an array: jax arrays stay as they are, everything else becomes NumPy float64.

    NumPy float32 stays with ``keep_single``, for what is large: float64 would say nothing new.

    Raises:
      ValueError: not numeric, or (when its numbers can be seen) NaN in it.
    """
    if isinstance(value, jax.Array):
        if not np.issubdtype(value.dtype, np.floating):
            raise ValueError(f"{name}: expected floating-point numbers, received {value.dtype}")
        if not isinstance(value, jax.core.Tracer) and np.isnan(np.asarray(value)).any():
            raise ValueError(f"{name}: expected numbers, received NaN")
        return value
    if value is None or isinstance(value, str | bytes):
        raise ValueError(f"{name}: expected numbers, received {value!r}")
    try:
        single = keep_single and getattr(value, "dtype", None) == np.float32
        array = np.asarray(value, np.float32 if single else np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, received {type(value).__name__}") from error
    if np.isnan(array).any():
        raise ValueError(f"{name}: expected numbers, received NaN")
    return array


def require_finite(array: Any, name: str) -> None:
    """ValueError unless every number that can be seen is finite."""
    if not is_traced(array) and not np.isfinite(np.asarray(array)).all():
        raise ValueError(f"{name}: expected finite numbers, received infinity or NaN")

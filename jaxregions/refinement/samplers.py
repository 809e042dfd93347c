"""What a sample consists of: parameters by a model's own initialisers, a batch, a point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxregions.batchnorm import condition, without_batchnorm

__all__ = ["Call", "Draw", "Source", "draw", "source", "twins", "used", "widened"]


class Draw(NamedTuple):
    """One sample: variables, rows (batch_size,) of the data or None, row of the points or None."""

    variables: Any
    rows: Any
    point: Any


class Source(NamedTuple):
    """draw: key -> variables. bind: variables -> (model, variables) as ``condition`` wants them."""

    draw: Callable[[Any], Any]
    bind: Callable[[Any], tuple[Any, Any]]


class Call(NamedTuple):
    """What the model is called with behind its input; keywords as sorted pairs."""

    args: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]

    @property
    def kwargs(self) -> dict[str, Any]:
        return dict(self.keywords)


@lru_cache(maxsize=32)
def source(model: Any, sampler: Callable[[Any], Any] | None, call: Call, shape: Any) -> Source:
    """Where variables come from: the model's initialisers on an input of this shape, or a sampler.

    Raises:
      ValueError: neither a linen module nor a function rngs -> nnx module (nor an nnx module with
        a sampler).
    """
    if isinstance(model, linen.Module):
        return Source(
            sampler or (lambda key: _without_statistics(_initial(model, key, call, shape))),
            lambda variables: (model, variables),
        )
    if isinstance(model, nnx.Module) and sampler is not None:
        graph = nnx.graphdef(model)
        return Source(sampler, lambda state: (nnx.merge(graph, state), None))
    linen_class = isinstance(model, type) and issubclass(model, linen.Module)
    if isinstance(model, nnx.Module) or linen_class or not callable(model):
        raise ValueError(
            "model: expected a flax.linen module, a function rngs -> flax.nnx module, or an nnx "
            f"module together with a sampler, received {type(model).__name__}"
        )
    made = nnx.eval_shape(lambda: model(nnx.Rngs(0)))
    if not isinstance(made, nnx.Module):
        raise ValueError(
            "model: expected a function rngs -> flax.nnx module, received one that returns "
            f"{type(made).__name__}"
        )
    graph = nnx.graphdef(made)
    return Source(
        sampler or (lambda key: nnx.state(model(nnx.Rngs(key)))),
        lambda state: (nnx.merge(graph, state), None),
    )


def draw(key: Any, index: Any, own: Source, rows: tuple[int, int] | None, points: int) -> Draw:
    """Sample ``index``. Parameters use fold_in(key, index) itself, as a loop of one's own would.

    rows: (how many, out of how many) rows of the data, without replacement; points: out of how
    many points one is drawn, 0: none.
    """
    key = jax.random.fold_in(key, index)
    batch = point = None
    if rows is not None:
        size, count = rows
        batch = jax.random.choice(jax.random.fold_in(key, 1), count, (size,), replace=False)
    if points:
        point = jax.random.randint(jax.random.fold_in(key, 2), (), 0, points)
    return Draw(own.draw(key), batch, point)


def twins(own: Source, call: Call, variables: Any, batch: Any) -> tuple[Any, Any]:
    """The model conditioned on the batch and its twin without BatchNorm, on the same variables."""
    model, state = own.bind(variables)
    return tuple(
        condition(m, state, batch, *call.args, **call.kwargs)
        for m in (model, without_batchnorm(model))
    )  # type: ignore[return-value]


def used(function: Callable[..., Any], leaves: list[Any], *more: Any) -> tuple[bool, ...]:
    """On which of the leaves function(leaves, *more) depends; of shapes alone, nothing is run."""
    jaxpr = jax.make_jaxpr(function)(leaves, *more).jaxpr
    live = set(map(id, jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        if live.intersection(map(id, eqn.outvars)):
            live.update(map(id, eqn.invars))
    return tuple(id(v) in live for v in jaxpr.invars[: len(leaves)])


def widened(tree: Any, xp: Any = jnp) -> Any:
    """The tree with its floating-point arrays in float64."""

    def wide(leaf):
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return xp.asarray(leaf, np.float64) if floating else leaf

    return jax.tree.map(wide, tree)


def _initial(model: linen.Module, key: Any, call: Call, shape: tuple[int, ...]) -> Any:
    return model.init(key, jnp.zeros((1, *shape)), *call.args, **call.kwargs)


def _without_statistics(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if name != "batch_stats"}

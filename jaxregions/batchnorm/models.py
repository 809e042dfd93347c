"""A model as a function of one example: conditioned on a batch, or without its BatchNorms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.errors import (
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    ScopeParamShapeError,
)

from jaxregions._records import is_traced, require_finite
from jaxregions.batchnorm import linen as linen_models
from jaxregions.batchnorm import nnx as nnx_models
from jaxregions.batchnorm.first_layer import as_batch
from jaxregions.batchnorm.statistics import Statistics, recorder, replayer
from jaxregions.tracing import marks

__all__ = ["condition", "without_batchnorm"]


def condition(
    model: Any,
    variables: Mapping[str, Any] | None,
    batch: Any,
    *args: Any,
    method: Callable | str | None = None,
    rngs: Any = None,
    **kwargs: Any,
) -> Callable[[Any], Any]:
    """x -> model(x[None], *args, **kwargs)[0], with every BatchNorm on the statistics of the batch.

    A BatchNorm call whose input on the batch is z has mean m = mean_B z and s = sqrt(var_B z +
    epsilon), biased two-pass variance over the examples and all reduced axes. In f they are
    constants:

        y = gamma (z - m) / s + beta,

    so f is piecewise affine when the model is, and f(x_j) is row j of the train-mode forward pass.
    Batch statistics are used whatever ``use_running_average`` says, and running statistics have no
    influence. Statistics are computed once, in float64 from the stored parameters and batch, and
    stored as float64; f itself computes in the precision of its x. When variables, batch or
    arguments are traced, everything stays traced, in the caller's precision.

    The statistics are those of the exact function. Flax's default ``use_fast_variance`` in float32
    is far from it where a feature's mean is large beside its deviation. A model that casts to a
    narrower ``dtype`` gets its statistics from the values so rounded.

    Args:
      model: a linen module, an nnx module (left untouched; its dropout is off), or the result of
        ``without_batchnorm``. Models without BatchNorm are fine.
      variables: linen: the variables, ``batch_stats`` may be absent. nnx: None.
      batch: (N, *input_shape), the whole batch, whatever ``axis_name`` says.
      args, kwargs: passed on to the model behind x, such as train=False.
      method: as in flax's ``apply``: None, a name or a function. Also for nnx.
      rngs: linen: passed on. nnx: None, the model holds its own.

    Returns:
      f: (*input_shape,) -> the model's output without its batch axis (each leaf of it); pure,
      and usable under jit, vmap and grad.

    Raises:
      ValueError: not a flax model, variables that do not fit it, a batch that is not finite
        numbers (N, ...), a batch of one example (or one value per feature) with BatchNorm, NaN or
        infinite parameters, a constant feature with epsilon = 0, BatchNorm inside a lifted or
        jitted part of the model; from f: an x of another shape.

    Source: MATHEMATICS.md, recentring.
    """
    run, state = _runner(model, variables, method, rngs)
    batch = as_batch(batch)
    _require_finite(state[0])
    if is_traced(state, batch, args, kwargs):
        floats = [leaf for leaf in jax.tree.leaves((state, batch)) if _is_floating(leaf)]
        state, batch = _cast((state, batch), jnp.result_type(*floats))
        tape = _record(run, state, batch, args, kwargs, traced=True)
    else:
        state = _cast(state, np.float64, np)
        with jax.enable_x64(True), _evaluated_now():
            wide_state, wide_batch = _cast((state, batch), jnp.float64)
            tape = _record(run, wide_state, wide_batch, args, kwargs, traced=False)
    size = batch.shape[0]

    def conditioned(x):
        x = jnp.asarray(x)
        if x.shape != batch.shape[1:]:
            raise ValueError(
                f"x: expected one example of shape {batch.shape[1:]}, received {x.shape}"
            )
        x = x if _is_floating(x) else x.astype(jnp.result_type(float))
        token = marks.new_token()
        if tape:
            x = marks.enter(x, jnp.asarray(batch, x.dtype), token=token)
        replay, finish = replayer(tape, size, token)
        y = run(replay, _cast(state, x.dtype), x[None], *args, **kwargs)
        finish()
        return jax.tree.map(lambda leaf: leaf[0], y)

    return conditioned


def without_batchnorm(model: Any) -> Any:
    """The twin of a model in which each BatchNorm is z -> gamma z + beta (without them: z).

    Args:
      model: a linen or nnx module.

    Returns:
      linen: a frozen object with ``init(rngs, *args, **kwargs)`` and ``apply(variables, *args,
      method=None, rngs=None, mutable=False, **kwargs)`` on exactly the model's variables tree.
      nnx: a clone of the model with the same state tree.

    Raises:
      ValueError: not a flax model.

    Source: MATHEMATICS.md, recentring.
    """
    if isinstance(model, linen.Module):
        return linen_models.LinenWithoutBatchNorm(model)
    if isinstance(model, nnx.Module):
        return nnx_models.swap(model, nnx_models.WithoutBatchNorm)
    raise ValueError(_not_a_model(model, "a flax.linen or flax.nnx module"))


Run = Callable[..., Any]  # (normalize, state, x, *args, **kwargs) -> y
State = tuple[Any, Any]  # weights, running statistics


def _runner(model, variables, method, rngs) -> tuple[Run, State]:
    """A function that runs the model with a ``Normalize`` in its BatchNorms, and its state."""
    if isinstance(model, linen.Module | linen_models.LinenWithoutBatchNorm):
        return _linen_runner(model, variables, method, rngs)
    if isinstance(model, nnx.Module):
        return _nnx_runner(model, variables, method, rngs)
    raise ValueError(_not_a_model(model, "a flax model or the result of without_batchnorm"))


def _linen_runner(model, variables, method, rngs) -> tuple[Run, State]:
    if not isinstance(variables, Mapping):
        raise ValueError(
            "variables: expected the mapping of a linen model's collections, received "
            f"{type(variables).__name__}"
        )
    weights = {name: value for name, value in variables.items() if name != "batch_stats"}
    running = {name: value for name, value in variables.items() if name == "batch_stats"}
    has_batchnorm = isinstance(model, linen.Module)

    def run(normalize, state, x, *args, **kwargs):
        context = linen_models.intercept(normalize) if has_batchnorm else nullcontext()
        try:
            with context:
                both = state[0] | state[1]
                return model.apply(both, x, *args, method=method, rngs=rngs, **kwargs)
        except (ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError) as error:
            raise ValueError(
                f"variables: expected the model's for inputs like the batch's; {error}"
            ) from error

    return run, (weights, running)


def _nnx_runner(model, variables, method, rngs) -> tuple[Run, State]:
    if variables is not None or rngs is not None:
        raise ValueError(
            "expected variables=None and rngs=None, an nnx model holds its own; received "
            f"{type(variables).__name__} and {type(rngs).__name__}"
        )
    clone = nnx_models.swap(model, nnx_models.OnBatch)
    clone.eval()
    graph, running, weights = nnx.split(clone, nnx.BatchStat, ...)

    def run(normalize, state, x, *args, **kwargs):
        with nnx_models.intercept(normalize):
            return nnx_models.call(nnx.merge(graph, *state), method, x, *args, **kwargs)

    return run, (weights, running)


def _record(run: Run, state, batch, args, kwargs, *, traced: bool) -> list[Statistics]:
    """The statistics of every BatchNorm call on the batch, in call order."""
    tape: list[Statistics] = []
    run(recorder(tape, batch.shape[0], traced=traced), state, batch, *args, **kwargs)
    return tape


def _evaluated_now() -> AbstractContextManager[Any]:
    """A context in which known values give known results, also while the caller is being traced.

    Only there: inside it flax would draw and compile every initial weight it checks a shape of.
    """
    staged = is_traced(jnp.zeros(()))
    return jax.ensure_compile_time_eval() if staged else nullcontext()


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _cast(tree: Any, dtype: Any, xp: Any = jnp) -> Any:
    """The tree with its floating-point arrays as xp arrays of this dtype."""
    return jax.tree.map(lambda leaf: xp.asarray(leaf, dtype) if _is_floating(leaf) else leaf, tree)


def _require_finite(weights: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if _is_floating(leaf):
            require_finite(leaf, f"variables{jax.tree_util.keystr(path)}")


def _not_a_model(model: Any, expected: str) -> str:
    kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    return f"model: expected {expected}, received {kind}"

"""``trace``: a continuous piecewise-affine function as staged switching values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions._records import is_traced, require_finite
from jaxregions.tracing import flatten
from jaxregions.tracing.tables import Unprovable
from jaxregions.tracing.walk import Group, Program, Slot, Walk, fold

__all__ = ["CPAFunction", "Stage", "trace"]


class Stage(NamedTuple):
    """The switching values that are affine once the signs of all earlier stages are known.

    groups: where they come from.
    size: how many switching values.
    unit: (size,) int, the unit of each; breakpoints of one pre-activation share theirs.
    units: number of units.
    """

    groups: tuple[Group, ...]
    size: int
    unit: np.ndarray
    units: int


@dataclasses.dataclass(frozen=True, eq=False)
class CPAFunction:
    """A traced continuous piecewise-affine function; call it like the function it was traced from.

    A switching value is a pre-activation minus a breakpoint, or the difference of two competing
    candidates. All methods are pure and work under jit, vmap and grad.

    input_shape: shape of one input.
    stages: see ``Stage``; the function is affine where all signs are fixed.
    casts: float-to-float casts met; they count as identities of the exact function.
    dropped: switching values that repeat another one and were left out.

    Source: README, "The mathematics", switching values.
    """

    input_shape: tuple[int, ...]
    stages: tuple[Stage, ...]
    casts: int
    dropped: int
    program: Program = dataclasses.field(repr=False)
    tree: Any = dataclasses.field(repr=False)

    @property
    def num_units(self) -> int:
        """Units of all stages: activations, and comparisons of maxima."""
        return sum(stage.units for stage in self.stages)

    def __call__(self, x: Any) -> Any:
        """f(x), x of ``input_shape``, through the traced program."""
        env = _run(self.program, jnp.asarray(x))
        outputs = [_read(env, o) for o in self.program.outputs]
        return jax.tree.unflatten(self.tree, outputs)

    def switching_values(self, x: Any) -> tuple[Any, ...]:
        """Per stage a (size,) array whose signs say which linear pieces are in use at x."""
        env = _run(self.program, jnp.asarray(x))
        return tuple(jnp.concatenate([_difference(env, g) for g in s.groups]) for s in self.stages)

    def pattern(self, x: Any) -> tuple[Any, ...]:
        """Per stage the signs -1, 0, 1 of ``switching_values`` as int8."""
        return tuple(jnp.sign(v).astype(jnp.int8) for v in self.switching_values(x))


def trace(f: Callable[[Any], Any], example_x: Any) -> CPAFunction:
    """Trace x -> f(x) into staged switching values.

    In float64 where f's constants are known; in their own precision where f closes over tracers
    (under jit or vmap), so that a training loop can jit the measurement.

    Args:
      f: any JAX function of one array, for a Flax model ``jr.condition(model, variables, batch)``.
      example_x: an array of the input's shape; its numbers do not matter.

    Raises:
      NotPiecewiseAffineError: a primitive that is not piecewise affine, or a selection that is not
        continuous; names the primitive and the source line.
      ValueError: an example that is not a floating-point array.

    Source: README, "The mathematics", switching values.
    """
    if isinstance(f, CPAFunction):
        return f
    shape = np.shape(example_x)
    if not is_traced(example_x):
        require_finite(np.asarray(example_x, np.float64), "example_x")
    with jax.enable_x64(True):
        closed, out = _jaxpr(f, jax.ShapeDtypeStruct(shape, jnp.float64))
        if not is_traced(closed.consts):
            return _trace(closed, out, shape)
    dtype = jnp.result_type(float)
    closed, out = _jaxpr(f, jax.ShapeDtypeStruct(shape, dtype))
    return _trace(closed, out, shape)


def _jaxpr(f: Callable[[Any], Any], example: jax.ShapeDtypeStruct) -> tuple[Any, Any]:
    return jax.make_jaxpr(f, return_shape=True)(example)


def _trace(closed: Any, out: Any, shape: tuple[int, ...]) -> CPAFunction:
    walk = Walk(shape, closed.in_avals[0].dtype)
    consts = [fold(c) for c in closed.consts]
    outputs = flatten.evaluate(closed.jaxpr, consts, [walk.input], walk.visit)
    try:
        outputs = [walk.flush(o) for o in outputs]
    except Unprovable as reason:
        raise flatten.NotPiecewiseAffineError(f"the function's output: {reason}") from reason
    program = walk.program(outputs)
    return CPAFunction(
        tuple(shape), _stages(program), walk.casts, walk.dropped, program, jax.tree.structure(out)
    )


def _stages(program: Program) -> tuple[Stage, ...]:
    depth = 1 + max((g.stage for g in program.groups), default=-1)
    stages = []
    for level in range(depth):
        groups = tuple(g for g in program.groups if g.stage == level)
        labels, offset, first = [], 0, {}
        for group in groups:
            entries = int(np.prod(group.left.shape))
            if group.unit not in first:
                first[group.unit], offset = offset, offset + entries
            label = first[group.unit] + np.arange(entries)
            labels.append(label if group.rows is None else label[group.rows.ravel()])
        unit = (
            np.unique(np.concatenate(labels), return_inverse=True)[1]
            if labels
            else np.zeros(0, int)
        )
        stages.append(Stage(groups, len(unit), unit, int(unit.max(initial=-1)) + 1))
    return tuple(stages)


def _run(program: Program, x: Any) -> list[Any]:
    env: list[Any] = [None] * program.size
    env[program.input.index] = x
    for step in program.steps:
        values = step.function(*(_read(env, v) for v in step.inputs))
        for index, value in zip(step.outputs, values, strict=True):
            env[index] = value
    return env


def _read(env: list[Any], value: Any) -> Any:
    return env[value.index] if isinstance(value, Slot) else value


def _difference(env: list[Any], group: Group) -> Any:
    left = env[group.left.index]
    right = group.right
    if isinstance(right, Slot):
        right = env[right.index]
    elif not is_traced(right):
        right = np.asarray(right, np.float64).astype(left.dtype)
    values = jnp.broadcast_to(left - right, left.shape).ravel()
    return values if group.rows is None else values[np.flatnonzero(group.rows)]

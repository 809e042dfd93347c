"""``trace``: a continuous piecewise-affine function as staged switching values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions._records import is_traced, require_finite
from jaxregions.tracing import flatten
from jaxregions.tracing.rules import visitor
from jaxregions.tracing.walk import Group, Program, Slot, Walk

__all__ = ["CPAFunction", "Stage", "fixed_signs", "slot_values", "trace"]


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
    casts: float-to-float casts met; the program leaves them out, as identities of the exact
      function.
    dropped: switching values left out because they vanish together with another one, or never
      change sign since they do not depend on the input.

    Source: MATHEMATICS.md, switching values.
    """

    input_shape: tuple[int, ...]
    stages: tuple[Stage, ...]
    casts: int
    dropped: int
    program: Program = dataclasses.field(repr=False)
    tree: Any = dataclasses.field(repr=False)
    _jitted: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def num_units(self) -> int:
        """Units of all stages: activations, and comparisons of maxima."""
        return sum(stage.units for stage in self.stages)

    def __call__(self, x: Any) -> Any:
        """f(x), x of ``input_shape``, through the traced program."""
        read = _run(self.program, self._point(x))
        return jax.tree.unflatten(self.tree, [jnp.asarray(read(o)) for o in self.program.outputs])

    def switching_values(self, x: Any) -> tuple[Any, ...]:
        """Per stage a (size,) array whose signs say which linear pieces are in use at x."""
        read = _run(self.program, self._point(x))
        return tuple(jnp.concatenate([_difference(read, g) for g in s.groups]) for s in self.stages)

    def pattern(self, x: Any) -> tuple[Any, ...]:
        """Per stage the signs -1, 0, 1 of ``switching_values`` as int8."""
        return tuple(jnp.sign(v).astype(jnp.int8) for v in self.switching_values(x))

    @property
    def is_traced(self) -> bool:
        """Whether the function closes over tracers, so that its numbers cannot be looked at."""
        return is_traced([step.inputs for step in self.program.steps])

    def jitted(
        self, function: Callable[..., Any], static: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """function(net, ...), jitted over what follows net; compiled once in this net's life."""
        if function not in self._jitted:
            self._jitted[function] = jax.jit(partial(function, self), static_argnums=static)
        return self._jitted[function]

    def _point(self, x: Any) -> Any:
        if np.shape(x) != self.input_shape:
            raise ValueError(f"x: expected shape {self.input_shape}, received {np.shape(x)}")
        return x


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
      ValueError: an example that is not finite numbers.

    Source: MATHEMATICS.md, switching values.
    """
    if isinstance(f, CPAFunction):
        return f
    shape = np.shape(example_x)
    if not is_traced(example_x):
        require_finite(np.asarray(example_x, np.float64), "example_x")
    with jax.enable_x64(True):
        try:
            closed, out = _jaxpr(f, shape, jnp.float64)
        except TypeError:  # insists on float32 somewhere, such as a loop's carry
            closed, out = _jaxpr(f, shape, jnp.float32)
        if not is_traced(closed.consts):
            return _traced(closed, out, shape, jnp.float64)
    dtype = jnp.result_type(float)
    return _traced(*_jaxpr(f, shape, dtype), shape, dtype)


def _jaxpr(f: Callable[[Any], Any], shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    # A new function each time: jax would answer a second trace of the same one from its cache.
    return jax.make_jaxpr(lambda x: f(x), return_shape=True)(jax.ShapeDtypeStruct(shape, dtype))


def _traced(closed: Any, out: Any, shape: tuple[int, ...], dtype: Any) -> CPAFunction:
    walk = Walk(shape, dtype)
    outputs = flatten.evaluate(closed, [walk.input], visitor(walk))
    outputs = [walk.flush(o) if isinstance(o, Slot) else walk.constant(o) for o in outputs]
    program = walk.program(outputs)
    return CPAFunction(
        shape, _stages(program), walk.casts, walk.dropped, program, jax.tree.structure(out)
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


def fixed_signs(net: CPAFunction, group: Group) -> np.ndarray:
    """Signs of left - right at the origin: right for every entry that is no switching value.

    Such an entry compares constants, and an infinite one is a candidate that always loses.
    """
    with jax.enable_x64(True):
        read = _run(net.program, np.zeros(net.input_shape))
        left, right = np.asarray(read(group.left)), np.asarray(read(group.right))
    return (left > right).astype(np.int8) - (left < right).astype(np.int8)


def slot_values(net: CPAFunction, x: Any, slots: Iterable[Slot]) -> list[Any]:
    """The values of these slots at x."""
    return list(map(_run(net.program, x), slots))


def _run(program: Program, x: Any) -> Callable[[Any], Any]:
    """Reads any slot's value at x, and any constant, in the precision of x."""
    x = jnp.asarray(x)
    if not flatten.is_float(x):
        x = x.astype(float)
    env: list[Any] = [None] * program.size
    env[program.input.index] = x

    def read(value):
        if isinstance(value, Slot):
            return env[value.index]
        return value.astype(x.dtype) if flatten.is_float(value) else value

    for step in program.steps:
        values = step.function(*map(read, step.inputs))
        for index, value in zip(step.outputs, values, strict=True):
            env[index] = value.astype(x.dtype) if flatten.is_float(value) else value
    return read


def _difference(read: Callable[[Any], Any], group: Group) -> Any:
    left, right = read(group.left), group.right
    if not isinstance(right, Slot) and not is_traced(right):
        right = np.asarray(right, np.float64)
    values = jnp.broadcast_to(left - read(right), left.shape).ravel()
    return values if group.rows is None else values[np.flatnonzero(group.rows)]

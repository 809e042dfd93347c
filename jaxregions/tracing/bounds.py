"""float64 evaluation of a traced function with a rigorous bound on the error of every result.

A sign is certain where |value| > bound. What is not certain there is left to rational arithmetic,
so a bound may be too large, never too small.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.exact import gamma
from jaxregions.tracing.error_rules import minus, tracked
from jaxregions.tracing.flatten import is_float
from jaxregions.tracing.network import CPAFunction
from jaxregions.tracing.norms import linear_norms
from jaxregions.tracing.structure import Structure, compiled
from jaxregions.tracing.tracked import TINY, Tracked, U, most, norm2
from jaxregions.tracing.walk import Group, Slot, Step, is_slot, visited

__all__ = [
    "BILINEAR",
    "Bounded",
    "Prepared",
    "at_point",
    "bounded_outputs",
    "bounded_values",
    "constants_of",
    "evaluated",
    "largest_bound",
    "needed",
    "prepare",
    "rounding_of",
    "stored_exactly",
]


class Bounded(NamedTuple):
    """values: float64. bound: |value - exact value| <= bound, entry by entry; inf where unknown.

    Both (size,).
    """

    values: Any
    bound: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """What ``bounded_values`` needs beside the point; a pytree of float64 arrays.

    constants: per step its inputs, those that are constants.
    extras: per step what its error rule needs: norms, the error of a batch mean, or None.
    rights: per stage and group the constant side of the switching values.
    """

    constants: Any
    extras: Any
    rights: Any
    structure: Structure = dataclasses.field(metadata={"static": True})

    @property
    def net(self) -> CPAFunction:
        """A function of this structure: its own, or another's under a shared jit."""
        return self.structure.net


# Evaluation -------------------------------------------------------------------------------------


def bounded_values(
    prepared: Prepared, x: Any, error: Any, stage: int, vanishing: Any = None
) -> Bounded:
    """The switching values of one stage at x, and how far they are from the exact ones.

        |values_i - v_i(x')| <= bound_i    for every x' with |x'_j - x_j| <= error,

    v_i the exact switching value of the exact function. Only the steps that this stage needs run;
    pure, to be used under jit and vmap with x64 enabled.

    Args:
      prepared: of ``prepare``.
      x: (*input_shape) float64.
      error: () >= 0, in units of x.
      stage: which stage.
      vanishing: (K,) int, switching values known to be zero at x', numbered through all stages; -1:
        none. What follows from them exactly, such as ties of dead units, is then exact.

    Raises:
      ValueError: x of another shape or precision.

    Source: MATHEMATICS.md, exact partitions.
    """
    return largest_bound(prepared, x, error, stage, vanishing)[0]


def largest_bound(
    prepared: Prepared, x: Any, error: Any, stage: int, vanishing: Any = None, tight: bool = True
) -> tuple[Bounded, Any]:
    """``bounded_values``, and a number that no bound is above.

    Args:
      tight: False: bounds that may be several times larger and do not see that all of a layer is
        exactly zero, from norms alone. That takes half the time.
    """
    groups = prepared.net.stages[stage].groups
    slots = [s for g in groups for s in (g.left, g.right) if is_slot(s)]
    env = evaluated(prepared, x, error, slots, vanishing, tight)
    parts = [_difference(env, g, r) for g, r in zip(groups, prepared.rights[stage], strict=True)]
    values, bounds, largest = zip(*parts, strict=True)
    return Bounded(jnp.concatenate(values), jnp.concatenate(bounds)), reduce(jnp.maximum, largest)


def bounded_outputs(prepared: Prepared, x: Any, error: Any) -> list[Bounded]:
    """The same for the outputs of the function: one pair for each leaf, flattened.

    Arguments and errors as for ``bounded_values``.
    """
    outputs = prepared.net.program.outputs
    env = evaluated(prepared, x, error, [o for o in outputs if is_slot(o)])
    pairs = []
    for output in outputs:
        t = env[output.index] if is_slot(output) else Tracked(output, np.zeros(np.shape(output)))
        pairs.append(Bounded(jnp.ravel(t.value), jnp.ravel(t.error)))
    return pairs


def evaluated(
    prepared: Prepared,
    x: Any,
    error: Any,
    slots: list[Slot],
    vanishing: Any = None,
    tight: bool = True,
) -> dict[int, Tracked]:
    """The slots that lead to these, at x and its error; tight: as for ``largest_bound``."""
    program = prepared.net.program
    if jnp.shape(x) != prepared.net.input_shape or jnp.result_type(x) != jnp.float64:
        raise ValueError(
            f"x: expected shape {prepared.net.input_shape} in float64 (jax.enable_x64), received "
            f"{jnp.shape(x)} in {jnp.result_type(x)}"
        )
    env = {program.input.index: at_point(jnp.asarray(x), error)}
    pins = {} if vanishing is None else _pins(prepared)
    _pin(env, (program.input.index,), pins, vanishing)
    for i in needed(program.steps, slots, {program.input.index}):
        _advance(env, program.steps[i], prepared.constants[i], prepared.extras[i], tight)
        _pin(env, program.steps[i].outputs, pins, vanishing)
    return env


Pins = dict[int, list[tuple[np.ndarray, Tracked | None]]]


def _pins(prepared: Prepared) -> Pins:
    """Per slot the numbers of its switching values against constants, -2 elsewhere."""
    pins: Pins = {}
    first = 0
    for stage, rights in zip(prepared.net.stages, prepared.rights, strict=True):
        for group, right in zip(stage.groups, rights, strict=True):
            rows = np.ones(group.left.shape, bool) if group.rows is None else group.rows
            numbers = np.full(group.left.shape, -2)
            numbers[rows] = first + np.arange(int(rows.sum()))
            first += int(rows.sum())
            if not is_slot(group.right):
                pins.setdefault(group.left.index, []).append((numbers, right))
    return pins


def _pin(env: dict[int, Tracked], outputs: tuple[int, ...], pins: Pins, vanishing: Any) -> None:
    """Where a switching value is known to vanish, its left side is its right side."""
    for index in outputs:
        for numbers, right in pins.get(index, []):
            t = env[index]
            hit = (numbers[..., None] == vanishing).any(-1)
            right = Tracked(np.zeros(())) if right is None else right
            own, other = (np.zeros(()) if e is None else e for e in (t.error, right.error))
            norms = (t.norm, None, t.most) if right.error is None else ()
            env[index] = Tracked(
                jnp.where(hit, right.value, t.value), jnp.where(hit, other, own), *norms
            )


def _advance(
    env: dict[int, Tracked], step: Step, constants: Any, extra: Any, tight: bool = True
) -> None:
    parts = [env[o.index] if is_slot(o) else c for o, c in zip(step.inputs, constants, strict=True)]
    if step.name != "flush":
        parts = visited(step, parts, lambda eqn, operands, _: tracked(eqn, operands, extra, tight))
    env.update(zip(step.outputs, parts, strict=True))


def at_point(x: Any, error: Any) -> Tracked:
    """x and its error."""
    error = jnp.asarray(error, jnp.float64)
    own = jnp.where(_is_small(error), TINY, 0.0) + jnp.where(_is_small(x), TINY, 0.0)
    return Tracked(x, error + own)


def _is_small(v: Any) -> Any:
    """Where 0 < |v| < ``TINY``, told by the bits: devices read subnormal numbers as zero.

    One unsigned range: a comparison of the bits with 0 is compiled to one of floats.
    """
    bits = jax.lax.bitcast_convert_type(v, jnp.uint64) & np.uint64(2**63 - 1)
    return bits - np.uint64(1) < np.float64(TINY).view(np.uint64) - np.uint64(1)


def needed(steps: list[Step], slots: list[Slot], known: set[int]) -> list[int]:
    """The steps that lead from the known slots to these, in order."""
    wanted, found = {s.index for s in slots}, []
    for i in reversed(range(len(steps))):
        if not wanted.isdisjoint(steps[i].outputs) and not known.issuperset(steps[i].outputs):
            found.append(i)
            wanted |= {s.index for s in steps[i].inputs if is_slot(s)}
    return found[::-1]


def _difference(env: dict[int, Tracked], group: Group, right: Any) -> tuple[Any, Any, Any]:
    left = env[group.left.index]
    other = env[group.right.index] if is_slot(group.right) else right
    t = left if other is None else minus(left, other)
    value, error = jnp.ravel(t.value), jnp.ravel(jnp.broadcast_to(t.error, jnp.shape(t.value)))
    if group.rows is None:
        return value, error, most(t)
    rows = np.flatnonzero(group.rows)
    return value[rows], error[rows], most(t)


# Preparation ------------------------------------------------------------------------------------


def prepare(net: CPAFunction) -> Prepared:
    """Everything about the function's constants that the bounds need, on the device; once in a
    net's life.

    Raises:
      ValueError: a function that closes over tracers.
    """
    if prepare not in net._jitted:
        if net.is_traced:
            raise ValueError(
                "net: expected a function of known numbers, received one that closes over tracers"
            )
        with jax.enable_x64(True), jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
            net._jitted[prepare] = jax.device_put(_prepared(net))
    return net._jitted[prepare]


def _prepared(net: CPAFunction) -> Prepared:
    steps = net.program.steps
    constants = tuple(map(constants_of, steps))
    extras = tuple(rounding_of(step) for step in steps)
    rights = tuple(tuple(_right(g) for g in stage.groups) for stage in net.stages)
    prepared = Prepared(constants, extras, rights, Structure(net))
    for i, step in enumerate(steps):
        if step.name == "enter_batch":
            prepared = _with_mean_errors(prepared, i)
    return prepared


def constants_of(step: Step) -> tuple[Tracked | None, ...]:
    """Its constant inputs, None for those that depend on x."""
    # The norms of a matrix cover its subnormal numbers; a batch is not evaluated.
    if step.name in BILINEAR or step.name == "enter_batch":
        return tuple(None if is_slot(o) else Tracked(o) for o in step.inputs)
    return tuple(None if is_slot(o) else _stored(o) for o in step.inputs)


def _stored(value: Any) -> Tracked:
    """A stored array; devices read its subnormal numbers as zero."""
    if not is_float(value):
        return Tracked(value)
    small = (value != 0) & (abs(value) < TINY)
    error = np.where(small, TINY, 0.0) if small.any() else None
    return Tracked(value, error, scale=float(norm2(value)) + math.sqrt(value.size) * TINY)


def _right(group: Group) -> Tracked | None:
    """The constant side of a group's differences, None if it is zero."""
    return None if is_slot(group.right) else stored_exactly(group.right)


def stored_exactly(number: Any) -> Tracked | None:
    """An exact constant, a Fraction, an array of them or floats, in float64; None if it is zero."""
    exact = np.asarray(number)
    value = exact.astype(np.float64)
    stored = _stored(value)
    if is_float(exact):
        return stored if value.any() else None
    pairs = zip(value.ravel().tolist(), exact.ravel().tolist(), strict=True)
    off = [0.0 if Fraction(v) == e else 2 * U * abs(v) + TINY for v, e in pairs]
    if not value.any() and not any(off):
        return None
    error = np.reshape(off, value.shape) + (0.0 if stored.error is None else stored.error)
    return Tracked(value, error if error.any() else None)


BILINEAR = ("dot_general", "conv_general_dilated")


def _params(step: Step) -> dict[str, Any]:
    return {} if step.eqn is None else step.eqn.params


def rounding_of(step: Step) -> Any:
    """What the error rule of a step needs beside its operands."""
    if step.name in BILINEAR:
        return linear_norms(step)
    if step.name.startswith("scatter"):
        return _scatter_rounding(step)
    return None


def _scatter_rounding(step: Step) -> float | None:
    """Relative error of as many operations as meet on one place; None: the last one wins."""
    x, index, update = step.inputs
    keys = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    zeros, ones = np.zeros(x.shape), np.ones(update.shape)
    params = {k: _params(step)[k] for k in keys if k != "unique_indices"}
    repeats = int(np.max(jax.lax.scatter_add(zeros, index, ones, **params), initial=0))
    if step.name == "scatter" and repeats > 1:
        return None
    return gamma(repeats + 8, np.float64)


# Batch means ------------------------------------------------------------------------------------


def _with_mean_errors(prepared: Prepared, entry: int) -> Prepared:
    """prepared, with the error of every stored mean of the batch that enters at this step."""
    x, batch = prepared.net.program.steps[entry].inputs
    shape = batch.shape[1:]
    if is_slot(batch) or shape != x.shape[len(x.shape) - len(shape) :]:
        return prepared
    rows = np.concatenate([batch, _centroid(batch)[None]])
    found = compiled(_mean_errors, prepared.structure, static=(2,))(prepared, rows, entry)
    extras = list(prepared.extras)
    for i, error in found.items():
        extras[i] = None if error is None else np.asarray(error)
    return dataclasses.replace(prepared, extras=tuple(extras))


def _mean_errors(prepared: Prepared, rows: Any, entry: int) -> dict[int, Any]:
    """Per step that subtracts a mean over these rows, the error of what it subtracts."""
    steps, constants, extras = (
        prepared.net.program.steps,
        prepared.constants,
        list(prepared.extras),
    )
    x, root, token = steps[entry].inputs[0], steps[entry].outputs[0], _params(steps[entry])["token"]
    wanted = {}
    for i, step in enumerate(steps):
        if step.name == "subtract_batch_mean" and _params(step)["token"] == token:
            path = needed(steps, [step.inputs[0]], {root})
            made = {root}.union(*(steps[j].outputs for j in path))
            inputs = [s for j in path for s in steps[j].inputs] + [step.inputs[0]]
            if extras[i] is None and all(s.index in made for s in inputs if is_slot(s)):
                wanted[i] = path

    def enter(row):
        t = at_point(row, 0.0)
        return Tracked(*(jnp.broadcast_to(v, x.shape) for v in t[:2]))

    env = {root: jax.vmap(enter)(rows)}
    for i in sorted({*wanted}.union(*wanted.values())):
        step = steps[i]
        if i in wanted:
            known = [c.value for c in constants[i][1:]]
            extras[i] = _mean_error(step, env[step.inputs[0].index], *known)
        slots = {s.index: env[s.index] for s in step.inputs if is_slot(s)}

        def advance(slots, step=step, i=i):
            _advance(slots, step, constants[i], extras[i])
            return {j: slots[j] for j in step.outputs}

        env.update(jax.vmap(advance)(slots))
    return {i: extras[i] for i in wanted}


def _centroid(batch: np.ndarray) -> np.ndarray:
    """The batch centroid on which first-layer hyperplanes are centred."""
    count, *shape = batch.shape
    sums = [math.fsum(column) for column in batch.reshape(count, -1).T.tolist()]
    return (np.array(sums, np.float64) / count).reshape(shape)


def _mean_error(step: Step, z: Tracked, mean: Any, mask: Any = None) -> Any:
    """How far the stored mean is from the exact one; rows of z: the batch, then its centroid."""
    axes = (0, *(a % z.value.ndim for a in _params(step)["axes"]))
    values, errors = z.value, jnp.broadcast_to(z.error, z.value.shape)
    weights = np.ones((1,) * values.ndim)
    if mask is not None:
        weights = jnp.reshape(mask, (len(mask), *[1] * (values.ndim - mask.ndim), *mask.shape[1:]))
        if len(mask) != len(values) - 1:
            return None
    error = _off(mean, values[:-1], errors[:-1], weights, axes)
    if step.inputs[0].depth == 0:  # the exact function subtracts the value at the centroid
        ones = np.ones((1,) * values.ndim)
        error = jnp.maximum(error, _off(mean, values[-1:], errors[-1:], ones, axes))
    return error


def _off(mean: Any, values: Any, errors: Any, weights: Any, axes: tuple[int, ...]) -> Any:
    """|mean - exact weighted mean| for values within these errors."""
    weights = jnp.broadcast_to(weights, values.shape).astype(float)
    count = jnp.sum(weights, axes, keepdims=True)
    terms = math.prod(values.shape[a] for a in axes)
    relative = gamma(terms + 16, np.float64)
    own, size, error = (
        (jnp.sum(weights * v, axes, keepdims=True) / count)[0]
        for v in (values, abs(values), errors)
    )
    off = abs(mean - own) + error + relative * (size + error + abs(mean))
    return off * (1 + 16 * U) + jnp.where((size > 0) | (error > 0) | (mean != 0), TINY, 0.0)

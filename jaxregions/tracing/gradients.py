"""Gradients of switching values in float64, in reverse, with a rigorous bound on every entry.

On the cell of a point the program is affine. It is run backward: each step hands the cotangents of
its outputs on to its inputs by its transposed derivative. That is itself linear, and its roundings
obey the same error rules as those of the program. Where a step chooses (a maximum, a select) the
derivative is the choice made at the point; it counts only where that choice is certain.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.tracing import flatten
from jaxregions.tracing.bounds import (
    Bounded,
    Prepared,
    constants_of,
    evaluated,
    needed,
    prepare,
    rounding_of,
)
from jaxregions.tracing.error_rules import MOVES, added, tracked
from jaxregions.tracing.flatten import JaxprEqn, bind, is_float, is_identity
from jaxregions.tracing.network import CPAFunction
from jaxregions.tracing.tracked import TINY, Tracked
from jaxregions.tracing.walk import Slot, Step, is_slot

__all__ = ["Reversible", "bounded_gradient", "prepare_reverse"]

_PASSING = ("flush", "enter_batch", "subtract_batch_mean")  # on to the first input, as they are
_LINEAR = (
    *MOVES,
    *("dot_general", "conv_general_dilated", "add", "add_any", "sub", "neg", "mul", "div"),
    *("reduce_sum", "cumsum", "reduce_window_sum"),
)
_UP = 1 + 2.0**-48


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Reversible:
    """prepared, and per step what the equations of its transposed derivative need; a pytree."""

    prepared: Prepared
    extras: Any


def prepare_reverse(net: CPAFunction) -> Reversible:
    """Once in a net's life; as ``prepare``."""
    if prepare_reverse not in net._jitted:
        prepared = prepare(net)
        with jax.enable_x64(True), np.errstate(all="ignore"):
            extras = jax.device_put(tuple(map(_extras, net.program.steps)))
        net._jitted[prepare_reverse] = Reversible(prepared, extras)
    return net._jitted[prepare_reverse]


def bounded_gradient(reverse: Reversible, x: Any, error: Any, stage: int, entry: Any) -> Bounded:
    """The gradient of one switching value on the cell of x, by the entries of the input.

        |values_j - dv/dx'_j| <= bound_j    for every x' with |x'_j - x_j| <= error

    on whose cell of the earlier stages v is affine; inf where a choice is not certain, unless it is
    between equal constants. To be used under jit and vmap with x64 enabled.

    Args:
      reverse: of ``prepare_reverse``.
      x, error, stage: as for ``bounded_values``.
      entry: () which switching value of the stage.

    Source: MATHEMATICS.md, exact partitions.
    """
    prepared = reverse.prepared
    program, groups = prepared.net.program, prepared.net.stages[stage].groups
    slots = [s for g in groups for s in (g.left, g.right) if is_slot(s)]
    # In a ball, so that what ties without doubt ties around the point and not at it alone.
    env = evaluated(prepared, x, jnp.maximum(error, TINY), slots)
    back = _seeds(groups, slots, entry)
    sure = jnp.asarray(True)
    for i in reversed(needed(program.steps, slots, {program.input.index})):
        step, known = program.steps[i], prepared.constants[i]
        handed = [back.pop(j, None) for j in step.outputs]
        if all(t is None for t in handed):
            continue
        parts = [env[o.index] if is_slot(o) else c for o, c in zip(step.inputs, known, strict=True)]
        if step.name in _PASSING or (step.eqn is not None and is_identity(step.eqn)):
            _give(back, step.inputs[0], handed[0])
            continue
        if not _among(step):  # constant on the cell
            continue
        if not all(is_float(o) for o in _outputs(step, parts)):
            sure = jnp.asarray(False)
            continue
        certain, chosen = _choice(step.name, parts)
        sure &= certain
        for slot, t in zip(_among(step), _pulled(step, chosen, handed, reverse.extras[i])):  # noqa: B905
            _give(back, slot, t)
    zero = jnp.zeros(prepared.net.input_shape)
    found = back.get(program.input.index, Tracked(zero, zero))
    bound = jnp.broadcast_to(0.0 if found.error is None else found.error, found.value.shape)
    return Bounded(jnp.ravel(found.value), jnp.where(sure, jnp.ravel(bound), jnp.inf))


def _give(back: dict[int, Tracked], slot: Slot, t: Tracked | None) -> None:
    """One more cotangent of a slot."""
    if t is not None:
        back[slot.index] = added(back[slot.index], t) if slot.index in back else t


def _seeds(groups: Any, slots: list[Slot], entry: Any) -> dict[int, Tracked]:
    """The cotangents of the slots whose difference is the value; zeros and ones, exactly."""

    def values(*sides):
        env = {s.index: v for s, v in zip(slots, sides, strict=True)}
        parts = []
        for group in groups:
            left = env[group.left.index]
            z = jnp.ravel(left - env[group.right.index] if is_slot(group.right) else left)
            parts.append(z if group.rows is None else z[np.flatnonzero(group.rows)])
        return jnp.concatenate(parts)

    z, back = jax.vjp(values, *(jnp.zeros(s.shape) for s in slots))
    own = back(jnp.zeros(z.shape).at[entry].set(1.0))
    found: dict[int, Tracked] = {}
    for slot, value in zip(slots, own, strict=True):
        if slot.index not in found:  # env holds the last of equal slots
            at = max(i for i, s in enumerate(slots) if s.index == slot.index)
            found[slot.index] = Tracked(own[at], jnp.zeros(value.shape))
    return found


def _among(step: Step) -> list[Slot]:
    """The inputs that have cotangents."""
    return [o for o in step.inputs if is_slot(o) and is_float(o.dtype)]


def _choice(name: str, parts: list[Tracked]) -> tuple[Any, list[Tracked]]:
    """Whether the derivative of a step at its float inputs is that at the exact ones; and its
    inputs, exact constants where it is a choice between them."""
    if name in ("max", "min"):
        certain = _apart(*parts)
    elif name == "clamp":
        low, x, high = parts
        certain = _apart(low, x) & _apart(x, high)
    elif name in ("abs", "sign"):
        certain = _apart(parts[0], Tracked(jnp.zeros(())))
    elif name == "select_n":
        certain = jnp.all(_error(parts[0]) == 0)
    else:
        floats = all(is_float(p.value) or p.error is None for p in parts)
        return jnp.asarray(name in _LINEAR and floats), parts
    return certain, [Tracked(p.value) for p in parts]


def _error(t: Tracked) -> Any:
    return jnp.zeros(()) if t.error is None else t.error


def _apart(a: Tracked, b: Tracked) -> Any:
    """Whether it is certain everywhere which is larger, or that they are equal."""
    doubt = (_error(a) + _error(b)) * _UP
    gap = jnp.abs(a.value - b.value)
    return jnp.all((gap > doubt * _UP) | ((gap == 0) & (doubt == 0)))


def _pulled(step: Step, parts: list[Tracked], handed: list[Any], extra: Any) -> list[Tracked]:
    """The cotangents of a step's inputs."""
    notes = iter(extra)

    def visit(eqn, operands, _):
        return tracked(eqn, operands, next(notes))

    return _backward(step, parts, handed, visit)


def _backward(step: Step, parts: list[Tracked], handed: list[Any], visit: Any) -> list[Tracked]:
    """The transposed derivative, equation by equation."""
    which = [i for i, o in enumerate(step.inputs) if is_slot(o) and is_float(o.dtype)]
    shapes, outs = _shapes(parts), _outputs(step, parts)
    zero = [Tracked(jnp.zeros(o.shape), jnp.zeros(o.shape)) for o in outs]
    ones = [z if t is None else t for z, t in zip(zero, handed, strict=True)]

    def pull(inputs, cotangents):
        def function(*some):
            full = list(inputs)
            for i, v in zip(which, some, strict=True):
                full[i] = v
            return list(step.function(*full))

        return jax.vjp(function, *(inputs[i] for i in which))[1](cotangents)

    cotangents = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in outs]
    jaxpr = jax.make_jaxpr(pull)(shapes, cotangents)
    found = flatten.evaluate(jaxpr, [*parts, *ones], visit)
    return [t if isinstance(t, Tracked) else Tracked(t, jnp.zeros(jnp.shape(t))) for t in found]


def _shapes(parts: list[Tracked]) -> list[Any]:
    return [jax.ShapeDtypeStruct(jnp.shape(p.value), jnp.result_type(p.value)) for p in parts]


def _outputs(step: Step, parts: list[Tracked]) -> list[Any]:
    return jax.eval_shape(lambda *v: list(step.function(*v)), *_shapes(parts))


def _extras(step: Step) -> tuple[Any, ...]:
    """What the equations of a step's transposed derivative need, in order."""
    notes = []
    if step.name in _PASSING or not _among(step):
        return ()
    if step.eqn is not None and is_identity(step.eqn):
        return ()

    def visit(eqn, operands, _):
        extra = _extra(eqn, operands)
        notes.append(extra)
        return tracked(eqn, operands, extra)

    parts = [
        Tracked(np.zeros(o.shape, o.dtype), np.zeros(o.shape)) if c is None else c
        for o, c in zip(step.inputs, constants_of(step), strict=True)
    ]
    _, chosen = _choice(step.name, parts)
    if all(is_float(o) for o in _outputs(step, chosen)):
        _backward(step, chosen, [None] * len(step.outputs), visit)
    return tuple(notes)


def _extra(eqn: JaxprEqn, operands: list[Any]) -> Any:
    operands = [o if isinstance(o, Tracked) else Tracked(o) for o in operands]
    open_ = [o.error is not None for o in operands]
    if not any(open_) or (all(open_) and len(open_) > 1):
        return None
    inputs = tuple(
        Slot(-1, jnp.shape(o.value), jnp.result_type(o.value), 0) if free else np.asarray(o.value)
        for o, free in zip(operands, open_, strict=True)
    )
    return rounding_of(Step(lambda *v: bind(eqn, *v), inputs, (), eqn.primitive.name, eqn))

"""A traced function at a rational point, in rational arithmetic: the last word on every sign.

Stored constants are taken as the exact rationals that they are and float-to-float casts as
identities. Where the program subtracts a batch mean, the exact function does not subtract the
rounded one that floating point uses:

* a first-stage z, affine in the input, is exactly centred at the float64 centroid p of the batch:
  z(x) - z(p), so that all its hyperplanes share p; over further axes (positions of a convolution)
  the mean of z(p) is subtracted;
* a z of a deeper stage, and one under a mask, has the exact mean of its values on all rows of the
  batch (over further axes too, masked entries left out) subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import numpy as np

from jaxregions.tracing import flatten, marks
from jaxregions.tracing.flatten import JaxprEqn, bind, is_identity, traced_as
from jaxregions.tracing.network import CPAFunction
from jaxregions.tracing.quotients import (
    Quotients,
    aligned,
    divided,
    quotients,
    rationals,
)
from jaxregions.tracing.rational_rules import Cache, answer, as_quotients, minus
from jaxregions.tracing.walk import Group, Slot, Step

__all__ = ["exact_outputs", "exact_signs", "exact_slots", "exact_values"]


class Operation(NamedTuple):
    """outputs = eqn(inputs), the inputs slots or constants; no equation: the identity."""

    eqn: JaxprEqn | None
    inputs: tuple[Any, ...]
    outputs: tuple[Slot, ...]


Values = dict[int, Quotients]


class Memory(NamedTuple):
    """What is worked out once in a net's life.

    operations: the program, every step as plain equations.
    made_by: the operation that makes a slot, by the slots' indices.
    cache: converted constants and the rules' index arrays.
    means: exact batch means, by the operation that subtracts them.
    on_batch: by token, what is known on the batch's rows, where later means start from.
    """

    operations: list[Operation]
    made_by: dict[int, int]
    cache: Cache
    means: dict[int, Quotients]
    on_batch: dict[int, Values]


_memories: WeakKeyDictionary[CPAFunction, Memory] = WeakKeyDictionary()


def exact_values(net: CPAFunction, x: Any, stage: int) -> np.ndarray:
    """The switching values of one stage at x, exactly.

    Args:
      net: a traced function whose constants are known.
      x: (*input_shape) array of rationals (``exact.rational``), ints or finite floats.
      stage: index into ``net.stages``.

    Returns:
      (size,) object array of exact rationals, in the order of ``net.switching_values(x)[stage]``.

    Raises:
      ValueError: another shape, entries that are no finite numbers, no such stage, a function that
        closes over tracers.

    Source: MATHEMATICS.md, recentring.
    """
    return np.concatenate([np.zeros(0, object), *map(rationals, _differences(net, x, stage))])


def exact_signs(net: CPAFunction, x: Any, stage: int) -> np.ndarray:
    """The signs -1, 0, 1 of ``exact_values`` as (size,) int8, without reducing them.

    Args, Raises: as for ``exact_values``.

    Source: MATHEMATICS.md, recentring.
    """
    tops = [d.top for d in _differences(net, x, stage)]
    top = np.concatenate([np.zeros(0, object), *tops])
    return np.greater(top, 0).astype(np.int8) - np.less(top, 0).astype(np.int8)


def exact_outputs(net: CPAFunction, x: Any) -> list[np.ndarray]:
    """The leaves of f(x) as object arrays of exact rationals, in the order of ``jax.tree.leaves``.

    Args: as for ``exact_values``.

    Raises:
      ValueError: as for ``exact_values``, and an infinite output.

    Source: MATHEMATICS.md, recentring.
    """
    return exact_slots(net, x, net.program.outputs)


def exact_slots(net: CPAFunction, x: Any, wanted: list[Any]) -> list[np.ndarray]:
    """The same for any slots (and constants) of the program."""
    return [rationals(v).reshape(v.shape) for v in _evaluate(net, x, wanted)]


def _differences(net: CPAFunction, x: Any, stage: int) -> list[Quotients]:
    """left - right of each group: (entries,) numerators, without the axis of rows."""
    if not 0 <= stage < len(net.stages):
        raise ValueError(f"stage: expected 0 to {len(net.stages) - 1}, received {stage}")
    groups = net.stages[stage].groups
    values = _evaluate(net, x, [side for g in groups for side in (g.left, g.right)])
    sides = zip(groups, values[::2], values[1::2], strict=True)
    return [minus(_entries(g, left), _entries(g, right)) for g, left, right in sides]


def _entries(group: Group, value: Quotients) -> Quotients:
    value = aligned(value, group.left.ndim)
    top = np.broadcast_to(value.top, (1, *group.left.shape)).ravel()
    return Quotients(top if group.rows is None else top[group.rows.ravel()], value.bottom)


def _evaluate(net: CPAFunction, x: Any, wanted: list[Any]) -> list[Quotients]:
    """Slots and constants at one point."""
    start = {net.program.input.index: _point(net, x)}
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        memory = _memory(net)
        values = _run(memory, [w.index for w in wanted if isinstance(w, Slot)], start)
        return [
            values[w.index] if isinstance(w, Slot) else quotients(np.asarray(w)[None])
            for w in wanted
        ]


def _point(net: CPAFunction, x: Any) -> Quotients:
    x = np.asarray(x)
    if x.shape != net.input_shape:
        raise ValueError(f"x: expected shape {net.input_shape}, received {x.shape}")
    try:
        point = quotients(x[None])
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"x: expected exact rationals, received {x.ravel()[:3]}") from error
    if not all(isinstance(v, int) for v in point.top.ravel()):
        raise ValueError("x: expected finite numbers, received infinity")
    return point


# The program as plain equations ------------------------------------------------------------------


def _memory(net: CPAFunction) -> Memory:
    if net not in _memories:
        if net.is_traced:
            raise ValueError(
                "expected a function whose constants are known, received one over tracers"
            )
        operations: list[Operation] = []
        fresh = net.program.size
        for step in net.program.steps:
            fresh = _straighten(step, operations, fresh)
        made_by = {slot.index: i for i, o in enumerate(operations) for slot in o.outputs}
        _memories[net] = Memory(operations, made_by, {}, {}, {})
    return _memories[net]


def _straighten(step: Step, operations: list[Operation], fresh: int) -> int:
    """Append the step's equations; slots of their own are numbered from ``fresh``."""
    if step.eqn is not None:
        slots = [
            Slot(i, *traced_as(v), 0) for i, v in zip(step.outputs, step.eqn.outvars, strict=True)
        ]
        operations.append(Operation(step.eqn, step.inputs, tuple(slots)))
        return fresh

    def visit(eqn, operands, _):
        nonlocal fresh
        if is_identity(eqn):
            return operands
        if not any(isinstance(o, Slot) for o in operands):
            return [np.asarray(v) for v in bind(eqn, *operands)]
        slots = [Slot(fresh + i, *traced_as(v), 0) for i, v in enumerate(eqn.outvars)]
        fresh += len(slots)
        operations.append(Operation(eqn, tuple(operands), tuple(slots)))
        return slots

    shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in step.inputs]
    closed = jax.make_jaxpr(step.function)(*shapes)
    for index, value in zip(
        step.outputs, flatten.evaluate(closed, list(step.inputs), visit), strict=True
    ):
        operations.append(Operation(None, (value,), (Slot(index, value.shape, value.dtype, 0),)))
    return fresh


# Evaluation --------------------------------------------------------------------------------------


def _run(memory: Memory, wanted: Iterable[int], known: Values) -> Values:
    """The values of the wanted slots, and of what they need, from those that are known."""
    values = dict(known)
    for number in _needed(memory, wanted, known):
        operation = memory.operations[number]
        inputs = [values[o.index] if isinstance(o, Slot) else o for o in operation.inputs]
        results = _answer(memory, number, inputs)
        values.update((s.index, r) for s, r in zip(operation.outputs, results, strict=True))
    return values


def _needed(memory: Memory, wanted: Iterable[int], known: Values) -> list[int]:
    numbers: set[int] = set()
    left = [w for w in wanted if w not in known]
    while left:
        index = left.pop()
        if index not in memory.made_by:
            raise ValueError("expected a batch mean of values behind where the batch enters")
        number = memory.made_by[index]
        if number not in numbers:
            numbers.add(number)
            inputs = memory.operations[number].inputs
            left += [o.index for o in inputs if isinstance(o, Slot) and o.index not in known]
    return sorted(numbers)


def _answer(memory: Memory, number: int, inputs: list[Any]) -> list[Quotients]:
    eqn = memory.operations[number].eqn
    if eqn is None:
        return [as_quotients(inputs[0], memory.cache)]
    if eqn.primitive is marks.subtract_mean_p:
        return [minus(inputs[0], _mean(memory, number))]
    return answer(eqn, inputs, memory.cache)


# Batch means -------------------------------------------------------------------------------------


def _mean(memory: Memory, number: int) -> Quotients:
    """What the exact function subtracts there: one row, reduced axes of length 1."""
    if number not in memory.means:
        eqn, (z, _, *mask), _ = memory.operations[number]
        assert eqn is not None
        token = eqn.params["token"]
        if z.depth == 0 and not mask:
            values = _run(memory, [z.index], _entering(memory, token, centred=True))[z.index]
        else:
            if token not in memory.on_batch:
                memory.on_batch[token] = _entering(memory, token, centred=False)
            known = memory.on_batch[token]
            values = known[z.index] = _run(memory, [z.index], known)[z.index]
        memory.means[number] = _average(values, eqn.params["axes"], *mask)
    return memory.means[number]


def _entering(memory: Memory, token: int, *, centred: bool) -> Values:
    """Where the batch of this token enters: its rows, or its centroid as the only one."""
    start = {}
    for eqn, inputs, outputs in memory.operations:
        if eqn is not None and eqn.primitive is marks.enter_p and eqn.params["token"] == token:
            rows = np.asarray(inputs[1], np.float64)
            rows = marks.center(rows)[None] if centred else rows
            (out,) = outputs
            start[out.index] = quotients(np.broadcast_to(rows, (len(rows), *out.shape)))
    return start


def _average(values: Quotients, axes: tuple[int, ...], mask: Any = None) -> Quotients:
    """The mean over the rows and these axes of the entries that the mask keeps."""
    top = values.top
    axes = (0, *axes)
    if mask is None:
        count = math.prod(top.shape[a] for a in axes)
        return Quotients(top.sum(axis=axes, keepdims=True), values.bottom * count)
    mask = np.asarray(mask, bool)
    mask = mask.reshape(len(mask), *[1] * (top.ndim - mask.ndim), *mask.shape[1:])
    mask = np.broadcast_to(mask, top.shape)
    total = Quotients(np.where(mask, top, 0).sum(axis=axes, keepdims=True), values.bottom)
    return divided(total, quotients(mask.sum(axis=axes, keepdims=True)))

"""The function level by level: a value of level l is affine on every cell of the first l stages.

So its slopes are known on a cell as soon as they are on one larger cell of an earlier level.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxregions.tracing.bounds import Prepared, needed
from jaxregions.tracing.flatten import is_float
from jaxregions.tracing.network import CPAFunction
from jaxregions.tracing.walk import Slot, is_slot

__all__ = ["Level", "level_values", "levels_of"]


class Level(NamedTuple):
    """steps: those of the program that are run on its cells.

    known: the values of earlier levels that they start from, or that later levels need. made: the
    values known to the next level; of the last level the outputs.
    """

    steps: tuple[int, ...]
    known: tuple[Slot, ...]
    made: tuple[Slot, ...]


def levels_of(net: CPAFunction) -> tuple[Level, ...]:
    """The S + 1 levels of a function of S stages; level 0 starts from the input alone."""
    if levels_of not in net._jitted:
        net._jitted[levels_of] = _levels(net)
    return net._jitted[levels_of]


def _levels(net: CPAFunction) -> tuple[Level, ...]:
    program, last = net.program, len(net.stages)
    outputs = tuple(dict.fromkeys(o for o in program.outputs if is_slot(o)))
    inputs = [s for step in program.steps for s in step.inputs if is_slot(s)]
    slots = {s.index: s for s in (program.input, *inputs, *outputs)}
    at = {program.input.index: 0}
    for step in program.steps:
        before = max(at[s.index] for s in step.inputs if is_slot(s))
        for i in step.outputs:
            at[i] = min(max(before, _own(slots[i]) if i in slots else 0), last)
    made, found = outputs, []
    for level in range(last, -1, -1):
        early = {i for i, s in slots.items() if at[i] < level and is_float(s)}
        early.add(program.input.index)
        steps = needed(program.steps, list(made), early)
        used = {s.index for i in steps for s in program.steps[i].inputs if is_slot(s)}
        used = early.intersection(used.union(s.index for s in made)) or {program.input.index}
        known = tuple(slots[i] for i in sorted(used))
        found.append(Level(tuple(steps), known, made))
        made = known
    return tuple(found[::-1])


def _own(slot: Slot) -> int:
    """The level at which a value is affine: a bend counts for the stage that decides it."""
    return slot.depth + (slot.bent or slot.comparison is not None)


def _chosen(a: Any, b: Any, first: Any) -> list[Any]:
    return [jnp.where(first & (b == b), a, b)]  # keeps NaN


# Derivatives of jnp.maximum split ties, for which XLA divides; on a cell two that tie are the same.
_CHOSEN = {
    "max": lambda a, b: _chosen(a, b, ~(a < b)),
    "min": lambda a, b: _chosen(a, b, ~(a > b)),
}


def level_values(prepared: Prepared, level: int, known: list[Any]) -> list[Any]:
    """What a level makes of the values it knows, in float64, without bounds.

    At the last level: [the outputs, flattened one after another].
    """
    net = prepared.net
    program, here = net.program, levels_of(net)[level]
    env = {s.index: v for s, v in zip(here.known, known, strict=True)}
    for i in here.steps:
        step, constants = program.steps[i], prepared.constants[i]
        pairs = zip(step.inputs, constants, strict=True)
        parts = [env[o.index] if is_slot(o) else c.value for o, c in pairs]
        chosen = _CHOSEN.get(step.name, lambda *p, f=step.function: f(*p))
        env.update(zip(step.outputs, chosen(*parts), strict=True))
    if level < len(net.stages):
        return [env[s.index] for s in here.made]
    values = [env[o.index] if is_slot(o) else o for o in program.outputs]
    return [jnp.concatenate([jnp.ravel(jnp.asarray(v, jnp.float64)) for v in values])]

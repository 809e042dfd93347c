"""What enters a stage: the values that its switching values are affine functions of."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxregions.tracing.network import CPAFunction, slot_values
from jaxregions.tracing.rational import exact_slots
from jaxregions.tracing.walk import Slot, is_slot

__all__ = ["exact_representation", "representation"]


def representation(net: CPAFunction, x: Any, stage: int) -> Any:
    """h(x) (m,): what the nonlinear operations of earlier stages hand to this one, flattened.

    The switching values of the stage are affine in h: h is x itself for the first stage, the last
    activations in an MLP or behind an addition of residuals, and all of them where several
    (a skip connection, the input itself) enter the stage's affine map separately. For
    stage = number of stages, what enters the affine map to the outputs.

    Source: MATHEMATICS.md, transfer through depth.
    """
    values = slot_values(net, x, _entering(net, stage))
    return jnp.concatenate([jnp.zeros(0, jnp.asarray(x).dtype), *map(jnp.ravel, values)])


def exact_representation(net: CPAFunction, x: Any, stage: int) -> np.ndarray:
    """The same as exact rationals; x as for ``exact_values``."""
    values = exact_slots(net, x, _entering(net, stage))
    return np.concatenate([np.zeros(0, object), *map(np.ravel, values)])


def _entering(net: CPAFunction, stage: int) -> list[Slot]:
    """The nearest slots before the stage that nonlinear operations, or nothing, made.

    An operation is nonlinear if its output is affine one stage later than its inputs.
    """
    program = net.program
    made_by = {index: step for step in program.steps for index in step.outputs}
    if stage < len(net.stages):
        left = [side for g in net.stages[stage].groups for side in (g.left, g.right)]
    else:
        left = list(program.outputs)
    found, seen = {}, set()
    while left:
        slot = left.pop()
        if not is_slot(slot) or slot.index in seen:
            continue
        seen.add(slot.index)
        step = made_by.get(slot.index)
        if step is None or slot.depth > max(o.depth for o in step.inputs if is_slot(o)):
            found[slot.index] = slot
        else:
            left += step.inputs
    return [found[index] for index in sorted(found)]

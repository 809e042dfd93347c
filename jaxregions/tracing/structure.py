"""What functions of one architecture share, whatever their parameters: compiled code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxregions.tracing.flatten import traced_as
from jaxregions.tracing.network import CPAFunction
from jaxregions.tracing.walk import Step, is_slot

__all__ = ["Structure", "compiled"]

_TOKENS = {"enter_batch", "subtract_batch_mean"}  # numbered anew for every conditioned function
_COMPILED = 64  # jitted functions kept; each holds one network of its structure


class Structure:
    """A traced function, equal to every other whose program differs in stored numbers only.

    A static argument: jax compiles once for all parameters of an architecture, as long as the
    compiled function takes every stored number from its arguments.
    """

    def __init__(self, net: CPAFunction):
        self.net = net
        self.digest = _digest(net)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@lru_cache(maxsize=_COMPILED)
def compiled(
    function: Callable[..., Any],
    structure: Structure,  # noqa: ARG001  one cache entry per structure
    static: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """function, jitted once per structure; its compiled code goes when its turn is over."""
    return jax.jit(lambda *arguments: function(*arguments), static_argnums=static)


def _digest(net: CPAFunction) -> str:
    """Of everything in the program but its stored numbers."""
    program = net.program
    parts: list[Any] = [net.input_shape, str(program.input.dtype), program.input.index]
    parts += [_step(step) for step in program.steps]
    for stage in net.stages:
        for group in stage.groups:
            rows = None if group.rows is None else group.rows.tobytes()
            parts.append((group.stage, _operand(group.left), _operand(group.right), rows))
    for output in program.outputs:
        # A constant output is not an argument of anything: its numbers belong to the structure.
        numbers = None if is_slot(output) else np.asarray(output).tobytes()
        parts.append((_operand(output), numbers))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _operand(value: Any) -> tuple:
    if is_slot(value):
        return ("slot", value.index, value.shape, str(value.dtype), value.depth, value.bent)
    return ("constant", np.shape(value), str(np.asarray(value).dtype))


def _step(step: Step) -> tuple:
    return (step.name, _operation(step), [_operand(o) for o in step.inputs], step.outputs)


def _operation(step: Step) -> Any:
    eqn = step.eqn
    if eqn is not None:
        skipped = {"token"} if step.name in _TOKENS else set()
        params = [(k, _parameter(v)) for k, v in sorted(eqn.params.items()) if k not in skipped]
        return params, [str(traced_as(v)) for v in (*eqn.invars, *eqn.outvars)]
    if step.name == "flush":
        return None
    shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in step.inputs]
    jaxpr = jax.make_jaxpr(step.function)(*shapes)
    return str(jaxpr), [_parameter(np.asarray(c)) for c in jaxpr.consts]


def _parameter(value: Any) -> Any:
    """Equal for equal parameters; a function's address keeps what cannot be compared apart."""
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return array.shape, str(array.dtype), array.tobytes()
    if getattr(value, "consts", None):
        return id(value)
    return repr(value)

"""The table primitive -> rule: what each primitive does to input-dependent values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxregions._records import is_traced
from jaxregions.tracing import contests
from jaxregions.tracing.elementwise import elementwise
from jaxregions.tracing.flatten import (
    JaxprEqn,
    NotPiecewiseAffineError,
    bind,
    is_float,
    is_identity,
    traced_as,
)
from jaxregions.tracing.operations import AFFINE, BATCHNORM_HINT, BENDING
from jaxregions.tracing.tables import Unprovable
from jaxregions.tracing.walk import Slot, Walk, is_slot

__all__ = ["visitor"]

Rule = Callable[[Walk, JaxprEqn, list[Any], str], list[Any]]


def visitor(walk: Walk) -> Callable[[JaxprEqn, list[Any], str], list[Any]]:
    """What answers every equation on behalf of this walk."""
    answered: dict[Hashable, tuple[list[Any], int]] = {}

    def visit(eqn: JaxprEqn, operands: list[Any], where: str) -> list[Any]:
        operands = [o if is_slot(o) else walk.constant(o) for o in operands]
        if not any(map(is_slot, operands)):
            return _folded(walk, eqn, operands)
        key = _key(eqn, operands)
        if key not in answered:
            before = walk.recorded
            answered[key] = _answer(walk, eqn, operands, where), walk.recorded - before
        else:
            walk.dropped += answered[key][1]
        return answered[key][0]

    return visit


def _answer(walk: Walk, eqn: JaxprEqn, operands: list[Any], where: str) -> list[Any]:
    name = eqn.primitive.name
    if is_identity(eqn):
        walk.casts += traced_as(eqn.invars[0])[1] != traced_as(eqn.outvars[0])[1]
        return operands
    rule = RULES.get(name)
    if rule is None:
        raise NotPiecewiseAffineError(
            f"primitive '{name}' at {where} is not piecewise affine in its input"
            + _HINTS.get(name, "")
        )
    try:
        _require_numbers(name, operands)
        return rule(walk, eqn, operands, where)
    except Unprovable as reason:
        raise NotPiecewiseAffineError(f"primitive '{name}' at {where}: {reason}") from reason


_ARITHMETIC = {"dot_general", "conv_general_dilated", "mul", "div", "add", "add_any", "sub"}


def _require_numbers(name: str, operands: list[Any]) -> None:
    """Constants in arithmetic are finite; others may only be compared, or never be chosen."""
    for o in operands if name in _ARITHMETIC else ():
        if is_slot(o) or is_traced(o) or not is_float(o):
            continue
        if np.isnan(o).any():
            raise Unprovable("a constant that is not a number (NaN)")
        if np.isinf(o).any():
            raise Unprovable(
                "an infinite constant in arithmetic (larger than its precision allows? Masks for a "
                "maximum select: jnp.where(mask, x, -jnp.inf))"
            )


def _folded(walk: Walk, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """Constants of constants, evaluated now even where the caller is being traced."""
    if eqn.primitive.name in _IN_OWN_PRECISION:
        operands = [
            o.astype(traced_as(v)[1]) if is_float(o) else o
            for o, v in zip(operands, eqn.invars, strict=True)
        ]
    if is_traced(operands):
        return [walk.constant(v) for v in bind(eqn, *operands)]
    with jax.ensure_compile_time_eval():
        return [walk.constant(v) for v in bind(eqn, *operands)]


_IN_OWN_PRECISION = {"bitcast_convert_type", "reduce", "reduce_window", "nextafter"}


def _key(eqn: JaxprEqn, operands: list[Any]) -> Hashable:
    """Equal for equations that compute the same thing; bends are told apart, to be counted."""
    name = eqn.primitive.name
    if name in BENDING:
        return object()
    inputs = []
    for o in operands:
        if isinstance(o, Slot):
            inputs.append(o.index)
        elif isinstance(o, np.ndarray):
            inputs.append((o.shape, o.dtype.str, hashlib.blake2b(o.tobytes()).digest()))
        else:
            inputs.append((id(o), "constant"))
    key = (name, tuple(sorted(eqn.params.items())), tuple(inputs))
    try:
        hash(key)
    except TypeError:
        return object()
    return key


# Linear in all operands together ----------------------------------------------------------------


def _linear(walk: Walk, eqn: JaxprEqn, operands: list[Any], _: str) -> list[Any]:
    operands = [walk.flush(o) for o in operands]
    return walk.emit(eqn, operands, max(o.depth for o in operands if is_slot(o)))


def _linear_at(positions: slice) -> Rule:
    """Linear, with constants at these operands."""

    def rule(walk, eqn, operands, where):
        if any(map(is_slot, operands[positions])):
            raise Unprovable("an index or update position that depends on the input")
        return _linear(walk, eqn, operands, where)

    return rule


def _bilinear(walk: Walk, eqn: JaxprEqn, operands: list[Any], where: str) -> list[Any]:
    if sum(map(is_slot, operands)) > 1:
        raise Unprovable("a product of two input-dependent values")
    return _linear(walk, eqn, operands, where)


def _subtract_mean(walk: Walk, eqn: JaxprEqn, operands: list[Any], where: str) -> list[Any]:
    if any(map(is_slot, operands[1:])):
        raise Unprovable("a batch mean that depends on the input")
    return _linear(walk, eqn, operands, where)


def _cast(walk: Walk, eqn: JaxprEqn, operands: list[Any], where: str) -> list[Any]:
    old, new = traced_as(eqn.invars[0])[1], traced_as(eqn.outvars[0])[1]
    if is_float(old) and not is_float(new):
        raise Unprovable(f"a cast of an input-dependent value from {old} to {new}")
    return elementwise(walk, eqn, operands, where)


_LINEAR = (
    "reshape",
    "transpose",
    "rev",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "concatenate",
    "stack",
    "unstack",
    "tile",
    "pad",
    "slice",
    "reduce_sum",
    "cumsum",
    "reduce_window_sum",
    "split",
    "enter_batch",
    "sharding_constraint",
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_LINEAR, _linear),
    **dict.fromkeys(("gather", "dynamic_slice", "scatter-mul"), _linear_at(slice(1, None))),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub"), _linear_at(slice(1, 2))),
    "dynamic_update_slice": _linear_at(slice(2, None)),
    **dict.fromkeys(("dot_general", "conv_general_dilated"), _bilinear),
    **dict.fromkeys((*AFFINE, *BENDING), elementwise),
    "convert_element_type": _cast,
    "subtract_batch_mean": _subtract_mean,
    "reduce_max": partial(contests.reduce_extremum, smallest=False),
    "reduce_min": partial(contests.reduce_extremum, smallest=True),
    "reduce_window_max": partial(contests.window_extremum, smallest=False),
    "reduce_window_min": partial(contests.window_extremum, smallest=True),
    "sort": contests.sort,
    "top_k": contests.top_k,
    "argmax": contests.arg_extremum,
    "argmin": contests.arg_extremum,
}

_STEPS = " (a piecewise constant function jumps)"
_HINTS = {
    "rsqrt": BATCHNORM_HINT,
    "sqrt": BATCHNORM_HINT,
    "pow": BATCHNORM_HINT,
    "exp": " (softmax, gelu, celu and silu have no affine regions; trace the logits instead)",
    "logistic": " (sigmoid and silu are smooth)",
    "erf": " (gelu is smooth)",
    "erfc": " (gelu is smooth)",
    "tanh": " (smooth; hard_tanh is not)",
    "floor": _STEPS,
    "ceil": _STEPS,
    "round": _STEPS,
}

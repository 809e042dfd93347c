"""A jaxpr as one flat list of first-order equations: nested calls inlined, loops unrolled."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxregions._records import is_traced

__all__ = [
    "NotPiecewiseAffineError",
    "Visit",
    "bind",
    "evaluate",
    "is_float",
    "is_identity",
    "traced_as",
]

Visit = Callable[[JaxprEqn, list[Any], str], list[Any]]

_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}
_IDENTITIES = {"reduce_precision", "stop_gradient", "copy", "copy_p", "optimization_barrier"}
_LIBRARIES = (
    *(str(Path(str(m.__file__)).parent) for m in (jax, jaxlib, flax)),
    str(Path(__file__).parent.parent),
    "<frozen",
)


class NotPiecewiseAffineError(ValueError):
    """The function is not continuous piecewise affine; names the primitive and the source line."""


# Source lines -----------------------------------------------------------------------------------


def _is_library(file_name: str | None) -> bool:
    return file_name is None or file_name.startswith(_LIBRARIES) or "contextlib" in file_name


def _source_of(eqn: JaxprEqn) -> str | None:
    """'file.py:12 (function)' of the innermost line outside the libraries, if there is one."""
    traceback = eqn.source_info.traceback
    for frame in [] if traceback is None else traceback.frames:
        if not _is_library(frame.file_name):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return None


# One equation -----------------------------------------------------------------------------------


def is_float(value: Any) -> bool:
    """Whether an array, a shape or a dtype is floating-point."""
    return jnp.issubdtype(getattr(value, "dtype", value), jnp.floating)


def traced_as(variable: Any) -> tuple[tuple[int, ...], Any]:
    """The shape and dtype that a variable of a jaxpr was traced with."""
    return variable.aval.shape, variable.aval.dtype


def is_identity(eqn: JaxprEqn) -> bool:
    """Whether the equation is exactly the identity: copies and float-to-float casts."""
    name = eqn.primitive.name
    if name == "convert_element_type":
        return is_float(eqn.invars[0].aval) and is_float(eqn.outvars[0].aval)
    return name in _IDENTITIES


def bind(eqn: JaxprEqn, *operands: Any) -> list[Any]:
    """The equation's outputs on these operands, in their precision.

    Whatever float type the equation was traced with, it runs in that of its operands: a
    float-to-float cast is the identity.
    """
    name, params = eqn.primitive.name, dict(eqn.params)
    if is_identity(eqn):
        return list(operands)
    if name == "convert_element_type" and is_float(eqn.outvars[0].aval):
        return [jnp.asarray(operands[0], float)]
    if name in _MOVES and all(type(o) is np.ndarray for o in operands):
        return [_MOVES[name](params, *operands)]
    if name in ("scatter", "scatter-add", "scatter-sub", "scatter-mul"):
        # These carry a jaxpr of the original precision, so they are made anew.
        scatter = getattr(jax.lax, name.replace("-", "_"))
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return [scatter(*operands, **{k: params[k] for k in names})]
    if name == "conv_general_dilated":
        operands, params["padding"] = _padded_first(operands, params)
    if name == "dot_general":
        operands = _vector_first(operands, params)
    for key in ("preferred_element_type", "out_dtype"):
        if params.get(key) is not None and is_float(params[key]):
            params[key] = None
    # On jax 0.10 get_bind_params returns (subfuns, params), later versions the params alone.
    params = eqn.primitive.get_bind_params(params)
    subfuns, params = params if isinstance(params, tuple) else ([], params)
    out = eqn.primitive.bind(*subfuns, *operands, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _vector_first(operands: tuple[Any, ...], params: dict[str, Any]) -> tuple[Any, ...]:
    """A matrix times a vector as the vector times the matrix: over many vectors at once XLA then
    transposes nothing."""
    (left, right), batch = params["dimension_numbers"]
    vector = np.ndim(operands[1]) == len(right) and np.ndim(operands[0]) > len(left)
    if not vector or any(batch):
        return operands
    params["dimension_numbers"] = (right, left), batch
    if isinstance(params["precision"], tuple):
        params["precision"] = params["precision"][::-1]
    return operands[::-1]


def _broadcast(params: dict[str, Any], a: np.ndarray) -> np.ndarray:
    kept = [1] * len(params["shape"])
    for axis, length in zip(params["broadcast_dimensions"], a.shape, strict=True):
        kept[axis] = length
    return np.broadcast_to(a.reshape(kept), params["shape"])


def _reshape(params: dict[str, Any], a: np.ndarray) -> np.ndarray:
    order = params["dimensions"]
    return (a if order is None else a.transpose(order)).reshape(params["new_sizes"])


def _slice(params: dict[str, Any], a: np.ndarray) -> np.ndarray:
    steps = params["strides"] or (1,) * a.ndim
    return a[tuple(map(slice, params["start_indices"], params["limit_indices"], steps))]


# Known entries are moved about without compiling a program for every shape.
_MOVES: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda p, *parts: np.concatenate(parts, axis=p["dimension"]),
    "reshape": _reshape,
    "rev": lambda p, a: np.flip(a, p["dimensions"]),
    "slice": _slice,
    "squeeze": lambda p, a: a.squeeze(p["dimensions"]),
    "transpose": lambda p, a: a.transpose(p["permutation"]),
}


def _padded_first(operands: tuple[Any, ...], params: dict[str, Any]) -> tuple[Any, Any]:
    """Operands and padding of a convolution; an image smaller than the kernel is padded by itself.

    XLA's CPU compiler would swap such an image with the kernel and run the result in naive loops,
    about 15 times slower; the barrier keeps it from seeing through the padding.
    """
    (image, *kernel), padding = operands, params["padding"]
    spec = params["dimension_numbers"]
    space = spec.lhs_spec[2:]
    positions = math.prod(kernel[0].shape[a] for a in spec.rhs_spec[2:])
    if (
        math.prod(image.shape[a] for a in space) >= positions
        or any(n != 1 for n in params["lhs_dilation"])
        or min(min(p) for p in padding) < 0
    ):
        return operands, padding
    widths = [(0, 0, 0)] * image.ndim
    for axis, (low, high) in zip(space, padding, strict=True):
        widths[axis] = (low, high, 0)
    padded = jax.lax.pad(image, jnp.zeros((), image.dtype), widths)
    return (jax.lax.optimization_barrier(padded), *kernel), ((0, 0),) * len(padding)


# A whole jaxpr ----------------------------------------------------------------------------------


def evaluate(
    body: ClosedJaxpr | Jaxpr, arguments: list[Any], visit: Visit, where: str | None = None
) -> list[Any]:
    """Walk a jaxpr; ``visit(equation, operands, source line)`` answers every first-order equation.

    ``where`` is the line that called it.
    """
    jaxpr = body.jaxpr if isinstance(body, ClosedJaxpr) else body
    env: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
    if isinstance(body, ClosedJaxpr):
        env.update(zip(jaxpr.constvars, body.consts, strict=True))
    # jax caches the jaxprs of its own functions, with the traceback of whoever called them first.
    stale = where is not None and _is_library(jaxpr.debug_info.func_filename)

    def read(atom):
        return atom.val if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        line = (None if stale else _source_of(eqn)) or where or "an unknown line"
        answer = _answer(eqn, [read(atom) for atom in eqn.invars], visit, line)
        env.update(zip(eqn.outvars, answer, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _answer(eqn: JaxprEqn, operands: list[Any], visit: Visit, where: str) -> list[Any]:
    name = eqn.primitive.name
    if name in _CALLS:
        names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
        body = next(eqn.params[key] for key in names if key in eqn.params)
        return evaluate(body, operands, visit, where)
    unrolled = {"scan": _scan, "while": _while, "cond": _cond}.get(name)
    return unrolled(eqn, operands, visit, where) if unrolled else visit(eqn, operands, where)


def _apply(function: Callable[..., Any], operands: list[Any], visit: Visit, where: str) -> Any:
    """A small jnp function, visited equation by equation."""
    shapes = [jax.ShapeDtypeStruct(np.shape(o), jnp.result_type(o)) for o in operands]
    return evaluate(jax.make_jaxpr(function)(*shapes), operands, visit, where)[0]


def _scan(eqn: JaxprEqn, operands: list[Any], visit: Visit, where: str) -> list[Any]:
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    constants, carried = _scan_split(eqn, body)
    fixed, carry = operands[:constants], operands[constants : constants + carried]
    stacked = operands[constants + carried :]
    order = range(length)[::-1] if eqn.params["reverse"] else range(length)
    rows: list[list[Any]] = [[]] * length
    for step in order:
        row = [_apply(lambda a, i=step: a[i], [xs], visit, where) for xs in stacked]
        out = evaluate(body, [*fixed, *carry, *row], visit, where)
        carry, rows[step] = out[:carried], out[carried:]
    if not length:
        empty = [np.zeros(*traced_as(v)) for v in eqn.outvars[carried:]]
        return [*carry, *empty]
    stack = [
        _apply(lambda *parts: jnp.stack(parts), list(column), visit, where)
        for column in zip(*rows, strict=True)
    ]
    return [*carry, *stack]


def _scan_split(eqn: JaxprEqn, body: ClosedJaxpr) -> tuple[int, int]:
    """How many operands are constants and how many are carried: what is stacked has an axis more.

    Read off the shapes because the parameters that say so were renamed in jax 0.11.
    """

    def same(outer, inner):
        pairs = zip(outer, inner, strict=True)
        return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)

    carried = same(eqn.outvars, body.jaxpr.outvars)
    return same(eqn.invars, body.jaxpr.invars) - carried, carried


def _is_known(value: Any) -> bool:
    known = np.ndarray | np.generic | jax.Array | int | float | bool
    return isinstance(value, known) and not is_traced(value)


def _while(eqn: JaxprEqn, operands: list[Any], visit: Visit, where: str) -> list[Any]:
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    split = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    for_test, for_body, carry = (
        operands[: split[0]],
        operands[split[0] : split[1]],
        operands[split[1] :],
    )
    while True:
        (go_on,) = evaluate(test, [*for_test, *carry], visit, where)
        if not _is_known(go_on):
            raise NotPiecewiseAffineError(
                f"primitive 'while' at {where}: how often the loop runs depends on the input "
                "or on traced values; expected a fixed number of steps"
            )
        if not bool(go_on):
            return carry
        carry = evaluate(body, [*for_body, *carry], visit, where)


def _cond(eqn: JaxprEqn, operands: list[Any], visit: Visit, where: str) -> list[Any]:
    index, *rest = operands
    if not _is_known(index):
        raise NotPiecewiseAffineError(
            f"primitive 'cond' at {where}: which branch runs depends on the input or on traced "
            "values; use jnp.where with branches that agree where the predicate changes"
        )
    branches = eqn.params["branches"]
    return evaluate(branches[int(np.clip(int(index), 0, len(branches) - 1))], rest, visit, where)

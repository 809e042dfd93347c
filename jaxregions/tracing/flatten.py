"""A jaxpr as one flat list of first-order equations: nested calls inlined, loops unrolled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxregions._records import is_traced

__all__ = ["NotPiecewiseAffineError", "bind", "evaluate", "source_of"]


class NotPiecewiseAffineError(ValueError):
    """The function is not continuous piecewise affine; names the primitive and the source line."""


def source_of(eqn: JaxprEqn) -> str | None:
    """'file.py:12 (function)' of the user's line that an equation comes from, if it is known."""
    traceback = eqn.source_info.traceback
    frames = [] if traceback is None else list(traceback.frames)
    inside = ("/jax/", "/jaxlib/", "/flax/", "/jaxregions/", "<frozen", "/contextlib.py")
    for frame in frames:
        if not any(part in frame.file_name.replace("\\", "/") for part in inside):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return None


def bind(eqn: JaxprEqn, *operands: Any) -> list[Any]:
    """The equation's outputs on these operands."""
    # On jax 0.10 get_bind_params returns (subfuns, params), later versions the params alone.
    params = eqn.primitive.get_bind_params(eqn.params)
    subfuns, params = params if isinstance(params, tuple) else ([], params)
    out = eqn.primitive.bind(*subfuns, *operands, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _inner(eqn: JaxprEqn) -> tuple[Jaxpr, list[Any]] | None:
    """The body of a call-like equation and its constants."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = eqn.params.get(name)
        if isinstance(body, ClosedJaxpr):
            return body.jaxpr, list(body.consts)
        if isinstance(body, Jaxpr):
            return body, []
    return None


Visit = Callable[[JaxprEqn, list[Any], str], list[Any]]


def evaluate(
    jaxpr: Jaxpr, consts: list[Any], arguments: list[Any], visit: Visit, where: str = "unknown line"
) -> list[Any]:
    """Walk a jaxpr; ``visit(equation, operands, source line)`` answers every first-order equation."""
    env: dict[Any, Any] = {}

    def read(atom):
        return atom.val if isinstance(atom, Literal) else env[atom]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        answer = _answer(eqn, operands, visit, source_of(eqn) or where)
        env.update(zip(eqn.outvars, answer, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _answer(eqn: JaxprEqn, operands: list[Any], visit: Visit, where: str) -> list[Any]:
    name = eqn.primitive.name
    if name == "scan":
        return _scan(eqn, operands, visit, where)
    if name == "while":
        return _while(eqn, operands, visit, where)
    if name == "cond":
        return _cond(eqn, operands, visit, where)
    inner = _inner(eqn)
    if inner is not None and name not in _NOT_INLINED:
        return evaluate(*inner, operands, visit, where)
    return visit(eqn, operands, where)


_NOT_INLINED = {"reduce_window", "reduce", "scatter", "scatter_add", "scatter-add", "custom_root"}


def _pieces(eqn: JaxprEqn) -> Iterator[int]:
    length = eqn.params["length"]
    return iter(range(length - 1, -1, -1) if eqn.params["reverse"] else range(length))


def _scan(eqn: JaxprEqn, operands: list[Any], visit: Visit, where: str) -> list[Any]:
    body = eqn.params["jaxpr"]
    constants, carried = _scan_split(eqn, body)
    fixed, carry = operands[:constants], operands[constants : constants + carried]
    stacked = operands[constants + carried :]
    rows: dict[int, list[Any]] = {}
    for step in _pieces(eqn):
        row = [apply(lambda a, i=step: a[i], [xs], visit, where) for xs in stacked]
        out = evaluate(body.jaxpr, list(body.consts), [*fixed, *carry, *row], visit, where)
        carry, rows[step] = out[:carried], out[carried:]
    columns = zip(*(rows[i] for i in sorted(rows)), strict=True)
    return [
        *carry,
        *(apply(lambda *parts: jnp.stack(parts), list(c), visit, where) for c in columns),
    ]


def _scan_split(eqn: JaxprEqn, body: ClosedJaxpr) -> tuple[int, int]:
    """How many operands are constants and how many are carried: what is stacked has an axis more.

    Read off the shapes because the parameters that say so were renamed in jax 0.11.
    """
    pairs = zip(eqn.outvars, body.jaxpr.outvars, strict=True)
    carried = sum(len(out.aval.shape) == len(inner.aval.shape) for out, inner in pairs)
    pairs = zip(eqn.invars, body.jaxpr.invars, strict=True)
    stacked = sum(len(out.aval.shape) > len(inner.aval.shape) for out, inner in pairs)
    return len(eqn.invars) - carried - stacked, carried


def apply(function: Callable[..., Any], operands: list[Any], visit: Visit, where: str) -> Any:
    """A small jnp function, visited equation by equation."""
    shapes = [jax.ShapeDtypeStruct(np.shape(o), _dtype(o)) for o in operands]
    closed = jax.make_jaxpr(function)(*shapes)
    return evaluate(closed.jaxpr, list(closed.consts), operands, visit, where)[0]


def _dtype(value: Any) -> Any:
    return value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype


def _constant(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic | jax.Array | int | float | bool)


def _while(eqn: JaxprEqn, operands: list[Any], visit: Visit, where: str) -> list[Any]:
    p = eqn.params
    test_count, body_count = p["cond_nconsts"], p["body_nconsts"]
    test, fixed = operands[:test_count], operands[test_count : test_count + body_count]
    carry = operands[test_count + body_count :]
    while True:
        (go_on,) = evaluate(
            p["cond_jaxpr"].jaxpr, list(p["cond_jaxpr"].consts), [*test, *carry], visit, where
        )
        if not _constant(go_on) or is_traced(go_on):
            raise NotPiecewiseAffineError(
                f"primitive 'while' at {where}: how often the loop runs depends on the input "
                "or on traced values; expected a fixed number of steps"
            )
        if not bool(go_on):
            return carry
        body = p["body_jaxpr"]
        carry = evaluate(body.jaxpr, list(body.consts), [*fixed, *carry], visit, where)


def _cond(eqn: JaxprEqn, operands: list[Any], visit: Visit, where: str) -> list[Any]:
    index, *rest = operands
    if not _constant(index) or is_traced(index):
        raise NotPiecewiseAffineError(
            f"primitive 'cond' at {where}: which branch runs depends on the input or on traced "
            "values; use jnp.where with branches that agree where the predicate changes"
        )
    branches = eqn.params["branches"]
    branch = branches[int(np.clip(int(index), 0, len(branches) - 1))]
    return evaluate(branch.jaxpr, list(branch.consts), rest, visit, where)

"""From a flat jaxpr to a program: slots, straight-line steps, and the groups of switching values.

Every input-dependent value is a slot. Its ``depth`` counts the stages whose signs must be known for it to be
affine. Elementwise chains carry an exact ``Table`` of what they do to their origin; when something other
than an elementwise operation consumes a bent slot, the bends become switching values of the origin, in the
stage of its depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxregions._records import is_traced
from jaxregions.tracing import tables
from jaxregions.tracing.flatten import (
    JaxprEqn,
    NotPiecewiseAffineError,
    bind,
)
from jaxregions.tracing.tables import Table, Unprovable

__all__ = ["Group", "Program", "Slot", "Step", "Walk"]


class Slot:
    """One input-dependent value of the program; compared by identity."""

    __slots__ = ("depth", "dtype", "index", "origin", "parent", "shape", "table")

    def __init__(self, index, shape, dtype, depth, origin=None, table=None, parent=None):
        self.index, self.shape, self.dtype, self.depth = index, shape, dtype, depth
        # A bent slot is ``table`` of ``origin``; an affine one is its own origin.
        self.origin = self if origin is None else origin
        self.table = table
        # (slot, equation, operands): the elementwise operation that made an affine slot, if one did.
        self.parent = parent

    @property
    def bent(self) -> bool:
        return self.table is not None

    @property
    def ndim(self) -> int:
        return len(self.shape)


class Step(NamedTuple):
    """outputs = function(*inputs); inputs are slots or constants."""

    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    name: str
    eqn: JaxprEqn | None


class Group(NamedTuple):
    """Switching values left - right of one nonlinearity, those entries where ``rows`` is True.

    ``right`` is a slot (two competing candidates) or an exact constant (a breakpoint).
    ``unit`` names the unit of each kept entry within the stage: breakpoints of one pre-activation share it.
    """

    stage: int
    left: Slot
    right: Any
    rows: np.ndarray | None
    unit: int
    contest: int | None  # the maximum this comparison belongs to; None: an activation


class Program(NamedTuple):
    """Steps in evaluation order, groups, and what was met on the way."""

    input: Slot
    steps: list[Step]
    groups: list[Group]
    outputs: list[Any]
    casts: int
    dropped: int
    size: int


class Walk:
    """Collects a program while ``flatten.evaluate`` visits the equations."""

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self.steps: list[Step] = []
        self.groups: list[Group] = []
        self.size = 0
        self.casts = 0
        self.dropped = 0
        self.units = 0
        self.contests = 0
        self.seen: dict[Any, int] = {}
        self.input = self.slot(shape, dtype, 0)

    def slot(self, shape, dtype, depth, **more) -> Slot:
        self.size += 1
        return Slot(self.size - 1, tuple(shape), dtype, depth, **more)

    def program(self, outputs: list[Any]) -> Program:
        return Program(
            self.input, self.steps, self.groups, outputs, self.casts, self.dropped, self.size
        )

    # How equations enter -------------------------------------------------------------------------

    def visit(self, eqn: JaxprEqn, operands: list[Any], where: str) -> list[Any]:
        """Answer one first-order equation: fold constants, else ask the rules."""
        from jaxregions.tracing.rules import RULES

        if not any(isinstance(o, Slot) for o in operands):
            return [fold(v) for v in bind(eqn, *operands)]
        rule = RULES.get(eqn.primitive.name)
        if rule is None:
            raise NotPiecewiseAffineError(
                f"primitive '{eqn.primitive.name}' at {where} is not piecewise affine in its "
                "input" + _HINTS.get(eqn.primitive.name, "")
            )
        try:
            return rule(self, eqn, operands)
        except Unprovable as reason:
            raise NotPiecewiseAffineError(
                f"primitive '{eqn.primitive.name}' at {where}: {reason}"
            ) from reason

    def emit(self, eqn: JaxprEqn, operands: list[Any], depth: int) -> list[Slot]:
        """The equation itself as a step; affine outputs of this depth."""
        outputs = [self.slot(v.aval.shape, v.aval.dtype, depth) for v in eqn.outvars]
        indices = tuple(s.index for s in outputs)

        def function(*values, eqn=eqn):
            return bind(eqn, *values)

        self.steps.append(Step(function, tuple(operands), indices, eqn.primitive.name, eqn))
        return outputs

    def compute(
        self, function: Callable[..., Any], operands: list[Any], depth: int, name: str
    ) -> Slot:
        """A jnp function of the operands as one step."""
        shapes = [
            jax.ShapeDtypeStruct(o.shape, o.dtype) if isinstance(o, Slot) else o for o in operands
        ]
        out = jax.eval_shape(function, *shapes)
        slot = self.slot(out.shape, out.dtype, depth)
        self.steps.append(
            Step(lambda *v: [function(*v)], tuple(operands), (slot.index,), name, None)
        )
        return slot

    # Bends ---------------------------------------------------------------------------------------

    def flush(self, value: Any) -> Any:
        """The same value as an affine slot of its own, its bends recorded as switching values."""
        if not isinstance(value, Slot) or not value.bent:
            return value
        bends = tables.bends(value.table)
        unit = self.new_unit(value.origin)
        for tau in bends:
            self.switch(value.origin.depth, value.origin, tau, unit=unit)
        depth = value.origin.depth + bool(bends)
        flat = self.slot(value.shape, value.dtype, depth)
        self.steps.append(Step(lambda v: [v], (value,), (flat.index,), "flush", None))
        return flat

    def new_unit(self, origin: Slot) -> int:
        key = ("unit", origin.index)
        if key not in self.seen:
            self.units += 1
            self.seen[key] = self.units - 1
        return self.seen[key]

    def switch(
        self,
        stage: int,
        left: Slot,
        right: Any,
        *,
        unit: int,
        rows: np.ndarray | None = None,
        contest: int | None = None,
    ) -> None:
        """Record switching values, unless the same ones are there already."""
        if isinstance(right, Slot):
            key = ("pair", *sorted((left.index, right.index)))
        else:
            key = ("breakpoint", left.index, _key(right))
        if rows is not None:
            key = (*key, rows.tobytes())
        if key in self.seen:
            self.dropped += int(np.prod(left.shape)) if rows is None else int(rows.sum())
            return
        self.seen[key] = 1
        self.groups.append(Group(stage, left, right, rows, unit, contest))

    # Elementwise chains ---------------------------------------------------------------------------

    def common_origin(self, slots: list[Slot]) -> Slot | None:
        """The nearest slot that all of these are elementwise functions of."""
        lines = [self._ancestors(s.origin) for s in slots]
        for candidate in lines[0]:
            if all(candidate in line for line in lines[1:]):
                return candidate
        return None

    @staticmethod
    def _ancestors(slot: Slot) -> list[Slot]:
        line = [slot]
        while line[-1].parent is not None:
            line.append(line[-1].parent[0])
        return line

    def table_of(self, value: Any, origin: Slot) -> Table:
        """What the value is as a function of ``origin``, exactly."""
        if not isinstance(value, Slot):
            return Table.constant(tables.coefficient(value))
        if value is origin:
            return Table.identity()
        if value.bent:
            return (
                value.table
                if value.origin is origin
                else _compose(value.table, self._line(value.origin, origin))
            )
        return Table((), (self._line(value, origin),))

    def _line(self, slot: Slot, origin: Slot) -> tuple[Any, Any]:
        """(alpha, beta) of an affine slot that descends elementwise from ``origin``."""
        if slot is origin:
            return Table.identity().pieces[0]
        from jaxregions.tracing.rules import AFFINE_TABLES

        parent, eqn, operands = slot.parent
        inner = [
            Table((), (self._line(parent, origin),))
            if o is parent
            else Table.constant(tables.coefficient(o))
            for o in operands
        ]
        return AFFINE_TABLES[eqn.primitive.name](eqn, inner).pieces[0]


def _compose(table: Table, line: tuple[Any, Any]) -> Table:
    """table(alpha u + beta) as a table of u."""
    alpha, beta = line
    direction = tables.sign(alpha)
    if not direction:
        raise Unprovable("an elementwise chain that is rescaled by values of both signs or of none")
    pieces = [
        (tables.times(a, alpha), tables.plus(tables.times(a, beta), b)) for a, b in table.pieces
    ]
    taus = [tables.divide(tables.minus(tau, beta), alpha) for tau in table.taus]
    if direction < 0:
        taus, pieces = taus[::-1], pieces[::-1]
    return Table(tuple(taus), tuple(pieces))


def _key(value: Any) -> Any:
    if is_traced(value):
        return id(value)
    if isinstance(value, np.ndarray):
        return (value.shape, tuple(value.ravel().tolist()))
    return value


def fold(value: Any) -> Any:
    """Constants are kept as NumPy arrays wherever their numbers are known."""
    return value if is_traced(value) else np.asarray(value)


_HINTS = {
    "rsqrt": "; if this is BatchNorm in training mode, condition the model on a batch first: jr.condition",
    "sqrt": "; if this is BatchNorm in training mode, condition the model on a batch first: jr.condition",
    "exp": " (a softmax, gelu, celu or silu has no affine regions: trace the logits instead)",
    "logistic": " (a sigmoid or silu is smooth)",
    "erf": " (gelu is smooth)",
    "tanh": " (use hard_tanh, or trace what comes before)",
}

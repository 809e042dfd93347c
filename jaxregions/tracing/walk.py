"""From a flat jaxpr to a program: slots, straight-line steps, and the groups of switching values.

Every input-dependent value is a slot. Its ``depth`` counts the stages whose signs must be known for
it to be affine. Elementwise chains carry an exact ``Table`` of what they do to their origin; when
something other than an elementwise operation consumes a bent slot, the bends become switching
values of the origin, in the stage of its depth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions._records import is_traced
from jaxregions.tracing import constancy, flatten, tables
from jaxregions.tracing.constancy import Fixed, constant
from jaxregions.tracing.flatten import JaxprEqn, NotPiecewiseAffineError, bind, is_float, traced_as
from jaxregions.tracing.operations import table_of_primitive
from jaxregions.tracing.tables import Table, Unprovable

__all__ = ["Contest", "Group", "Program", "Slot", "Step", "Walk", "is_slot", "visited"]


@dataclasses.dataclass(eq=False)
class Slot:
    """One input-dependent value of the program; compared by identity.

    origin, table: a bent slot is ``table`` of ``origin``; an affine one is its own origin.
    parent: (slot, equation, operands), the elementwise operation that made an affine slot.
    comparison: (primitive, operands) of a predicate on two values that share no origin.
    made: "primitive 'name' at line" of the operation that bent it.
    fixed: the entries that do not depend on the input; None: all do.
    """

    index: int
    shape: tuple[int, ...]
    dtype: Any
    depth: int
    origin: Slot = None  # type: ignore[assignment]
    table: Table | None = None
    parent: tuple[Slot, JaxprEqn, list[Any]] | None = None
    comparison: tuple[str, list[Any]] | None = None
    made: str = "the function"
    fixed: Fixed | None = None

    def __post_init__(self):
        self.origin = self if self.origin is None else self.origin

    @property
    def bent(self) -> bool:
        return self.table is not None

    @property
    def ndim(self) -> int:
        return len(self.shape)


def is_slot(value: Any) -> bool:
    return isinstance(value, Slot)


class Step(NamedTuple):
    """outputs = function(*inputs); inputs are slots or constants."""

    function: Callable[..., list[Any]]
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    name: str
    eqn: JaxprEqn | None


def visited(step: Step, parts: list[Any], visit: flatten.Visit) -> list[Any]:
    """The step answered equation by equation; its parts have the shapes of its inputs."""
    if step.eqn is not None:
        return visit(step.eqn, parts, "")
    shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in step.inputs]
    return flatten.evaluate(jax.make_jaxpr(step.function)(*shapes), parts, visit)


class Contest(NamedTuple):
    """One maximum (minimum) of many candidates, decided in rounds.

    In a round with left values of shape (h, ...), member m of the line meets member h + m; the
    winners come first in the next line, a member without an opponent last.
    """

    number: int
    smallest: bool


class Group(NamedTuple):
    """Switching values left - right of one nonlinearity, those entries where ``rows`` is True.

    ``right`` is a slot (two competing candidates) or an exact constant: a Fraction, an object array
    of Fractions that broadcasts against left, a float array or a tracer.
    ``unit`` names the unit of the entries within the stage: breakpoints of one pre-activation share
    it. ``contest``: the maximum over an axis or pooling window that a comparison is a round of, in
    which the order of the losers does not count; None: every sign counts.
    """

    stage: int
    left: Slot
    right: Any
    rows: np.ndarray | None
    unit: int
    contest: Contest | None


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
    """Collects a program while the rules visit the equations; floats are all of one dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self.dtype = np.dtype(dtype)
        self.steps: list[Step] = []
        self.groups: list[Group] = []
        self.size = self.casts = self.dropped = self.recorded = self.units = self.contests = 0
        self._seen: set[Hashable] = set()
        self._unit_of: dict[int, int] = {}
        self._flat: dict[int, Slot] = {}
        self.input = self.slot(shape, dtype, 0)

    def slot(self, shape: Any, dtype: Any, depth: int, fixed: Fixed | None = None) -> Slot:
        self.size += 1
        dtype = self.dtype if is_float(dtype) else dtype
        return Slot(self.size - 1, tuple(shape), dtype, depth, fixed=fixed)

    def program(self, outputs: list[Any]) -> Program:
        return Program(
            self.input, self.steps, self.groups, outputs, self.casts, self.dropped, self.size
        )

    # Steps ---------------------------------------------------------------------------------------

    def constant(self, value: Any) -> Any:
        """A constant in the program's precision, in NumPy wherever its numbers are known.

        A copy: jax, too, may share the memory of an array that the caller changes later.
        """
        if is_traced(value):
            return value.astype(self.dtype) if is_float(value) else value
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended):
            return value  # random keys
        return np.array(value, self.dtype if is_float(value) else None)

    def emit(self, eqn: JaxprEqn, operands: list[Any], depth: int) -> list[Slot]:
        """The equation itself as a step; affine outputs of this depth."""
        outputs = [self.slot(*traced_as(v), depth) for v in eqn.outvars]

        def function(*values):
            return bind(eqn, *values)

        return self._step(function, operands, outputs, eqn.primitive.name, eqn)

    def compute(
        self, function: Callable[..., Any], operands: list[Any], depth: int, name: str
    ) -> Slot:
        """A jnp function that moves or compares entries of the operands, as one step."""
        shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands]
        out = jax.eval_shape(function, *shapes)
        slot = self.slot(out.shape, out.dtype, depth)
        return self._step(lambda *v: [function(*v)], operands, [slot], name, None)[0]

    def _step(self, function, operands, outputs, name, eqn) -> list[Slot]:
        fixed = constancy.after(name, function, operands, is_slot) or [None] * len(outputs)
        for slot, known in zip(outputs, fixed, strict=True):
            slot.fixed = known
        indices = tuple(s.index for s in outputs)
        self.steps.append(Step(function, tuple(operands), indices, name, eqn))
        return outputs

    # Bends ---------------------------------------------------------------------------------------

    def flush(self, value: Any) -> Any:
        """The same value as an affine slot of its own, its bends recorded as switching values."""
        if not isinstance(value, Slot):
            return value
        if value.comparison is not None:
            raise NotPiecewiseAffineError(f"{value.made}: its value jumps where two arguments tie")
        if value.table is None:
            return value
        if value.index not in self._flat:
            self._flat[value.index] = self._flushed(value, value.table)
        return self._flat[value.index]

    def _flushed(self, value: Slot, table: Table) -> Slot:
        origin = value.origin
        try:
            bends = tables.bends(table)
        except Unprovable as reason:
            raise NotPiecewiseAffineError(f"{value.made}: {reason}") from reason
        if origin.index not in self._unit_of:
            self._unit_of[origin.index] = self.new_unit()
        unit = self._unit_of[origin.index]
        live = [self.switch(origin.depth, origin, tau, unit=unit) for tau in bends]
        flat = self.slot(value.shape, value.dtype, origin.depth + any(live), value.fixed)
        self.steps.append(Step(lambda v: [v], (value,), (flat.index,), "flush", None))
        return flat

    def new_unit(self) -> int:
        self.units += 1
        return self.units - 1

    def switch(
        self, stage: int, left: Slot, right: Any, *, unit: int, contest: Contest | None = None
    ) -> bool:
        """Record the switching values left - right, unless the same are there already.

        Entries that cannot change sign are left out. Returns whether any is left.
        """
        split = constancy.live(left.fixed, right.fixed if is_slot(right) else constant(right))
        rows, constants = (None, 0) if split is None else split
        self.dropped += constants
        if rows is not None and rows.all():
            rows = None
        count = math.prod(left.shape) if rows is None else int(rows.sum())
        if not count:
            return False
        key = (self._zero_set(left, right), None if rows is None else rows.tobytes())
        if key in self._seen:
            self.dropped += count
            return True
        self._seen.add(key)
        self.recorded += count
        self.groups.append(Group(stage, left, right, rows, unit, contest))
        return True

    def _zero_set(self, left: Slot, right: Any) -> Hashable:
        """Equal for switching values that vanish together: same root, same place on it."""
        if isinstance(right, Slot):
            return ("pair", *sorted((left.index, right.index)))
        if isinstance(right, np.ndarray) and is_float(right):
            return left.index, right.tobytes()
        root = _ancestors(left)[-1]
        try:
            alpha, beta = self._line(left, root)
            if not is_traced((alpha, beta, right)) and np.all(np.asarray(alpha, object) != 0):
                return root.index, _key(tables.divide(tables.minus(right, beta), alpha))
        except Unprovable:
            pass  # too many rationals: known under its own name only
        return left.index, _key(right)

    # Elementwise chains --------------------------------------------------------------------------

    def common_origin(self, slots: list[Slot]) -> Slot | None:
        """The nearest slot that all of these are elementwise functions of."""
        lines = [_ancestors(s.origin) for s in slots]
        return next((c for c in lines[0] if all(c in line for line in lines[1:])), None)

    def table_of(self, value: Any, origin: Slot) -> Table:
        """What the value is as a function of ``origin``, exactly."""
        if not isinstance(value, Slot):
            return Table.constant(tables.coefficient(value))
        line = self._line(value.origin, origin)
        return Table((), (line,)) if value.table is None else tables.composed(value.table, line)

    def _line(self, slot: Slot, origin: Slot) -> tuple[Any, Any]:
        """(alpha, beta) of an affine slot that descends elementwise from ``origin``."""
        if slot is origin or slot.parent is None:
            return Table.identity().pieces[0]
        parent, eqn, operands = slot.parent
        inner = [
            Table((), (self._line(parent, origin),))
            if o is parent
            else Table.constant(tables.coefficient(o))
            for o in operands
        ]
        return table_of_primitive(eqn.primitive.name, eqn.params, inner).pieces[0]


def _ancestors(slot: Slot) -> list[Slot]:
    line = [slot]
    while line[-1].parent is not None:
        line.append(line[-1].parent[0])
    return line


def _key(value: Any) -> Hashable:
    if is_traced(value):
        return id(value)
    if isinstance(value, np.ndarray):
        return value.shape, tuple(value.ravel().tolist())
    return value

"""Whether a change of linear pieces reaches the outputs.

Between two cells some pieces change. A value has *changed* unless it is proven to be one and the
same affine function on both: what is behind a unit that is flat on both sides, or behind a weight
that is exactly zero, has not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxregions.tracing.bounds import BILINEAR, Prepared, at_point, needed, stored_exactly
from jaxregions.tracing.error_rules import MOVES, minus, tracked
from jaxregions.tracing.flatten import JaxprEqn, bind, is_float, is_identity
from jaxregions.tracing.network import CPAFunction
from jaxregions.tracing.tables import Table, is_zero
from jaxregions.tracing.tracked import Tracked
from jaxregions.tracing.walk import Step, is_slot, visited

__all__ = ["changed_outputs", "pieces_of"]


class Pieces(NamedTuple):
    """An exact table: its K breakpoints, and for its pieces i, j where they are one and the same
    function (``equal``) and, beside that, one constant (``flat``)."""

    taus: list[Tracked | None]
    equal: list[list[np.ndarray]]
    flat: list[list[np.ndarray]]


class Sides(NamedTuple):
    """A value at a point of each cell; ``changed``: per entry, None for constants."""

    here: Tracked
    there: Tracked
    changed: Any


def pieces_of(net: CPAFunction) -> tuple[Any, ...]:
    """What ``changed_outputs`` needs beside ``prepare(net)``, per step: pieces, or the entries of
    a constant factor that are not zero (devices would read subnormal ones as zero)."""
    if pieces_of not in net._jitted:
        net._jitted[pieces_of] = tuple(_details(step) for step in net.program.steps)
    return net._jitted[pieces_of]


def _details(step: Step) -> Any:
    if step.name == "flush":
        return _pieces(step.inputs[0].table)
    if step.name in (*BILINEAR, "mul"):
        factors = [o for o in step.inputs if not is_slot(o)]
        return (np.asarray(factors[0]) != 0).astype(np.float64) if len(factors) == 1 else None
    return None


def _pieces(table: Table) -> Pieces:
    def same(p, q):
        return np.asarray(np.asarray(p, object) == np.asarray(q, object), bool)

    equal = [[same(a, c) & same(b, d) for c, d in table.pieces] for a, b in table.pieces]
    level = [same(a, 0) if not is_zero(a) else np.ones((), bool) for a, _ in table.pieces]
    flat = [[e & level[i] for e in row] for i, row in enumerate(equal)]
    return Pieces([stored_exactly(tau) for tau in table.taus], equal, flat)


def changed_outputs(
    prepared: Prepared, pieces: tuple[Any, ...], here: tuple[Any, Any], there: tuple[Any, Any]
) -> Any:
    """() bool: False proves that the function is one affine map on two cells.

    Args:
      pieces: of ``pieces_of``.
      here, there: (x, error) as for ``bounded_values``, of a point inside each cell.

    Source: MATHEMATICS.md, exact partitions.
    """
    program = prepared.net.program
    start = Sides(at_point(*here), at_point(*there), jnp.zeros(prepared.net.input_shape, bool))
    env = {program.input.index: start}
    outputs = [o for o in program.outputs if is_slot(o)]
    for i in needed(program.steps, outputs, set(env)):
        step, known = program.steps[i], prepared.constants[i]
        if step.name == "flush":
            parts = [env[step.inputs[0].index], env[step.inputs[0].origin.index]]
            results = [_through(pieces[i], *parts)]
        else:
            pairs = zip(step.inputs, known, strict=True)
            parts = [env[o.index] if is_slot(o) else Sides(c, c, None) for o, c in pairs]
            results = _run(step, parts, prepared.extras[i], pieces[i])
        env.update(zip(step.outputs, results, strict=True))
    return jnp.any(jnp.stack([jnp.any(env[o.index].changed) for o in outputs]))


def _through(pieces: Pieces, value: Sides, origin: Sides) -> Sides:
    """A value that is the table of its origin."""
    kept = jnp.zeros(jnp.shape(value.here.value), bool)
    uses = [_in_use(pieces.taus, t) for t in (origin.here, origin.there)]
    for i, one in enumerate(uses[0]):
        for j, other in enumerate(uses[1]):
            same = pieces.flat[i][j] | (pieces.equal[i][j] & ~origin.changed)
            kept |= one & other & same
    return value._replace(changed=~kept)


def _in_use(taus: list[Tracked | None], t: Tracked) -> list[Any]:
    """Per piece where it is certainly the one in use; at a breakpoint both are."""
    gaps = [_comparison(t, tau) for tau in taus]
    found = []
    for piece in range(len(taus) + 1):
        use = jnp.ones(jnp.shape(t.value), bool)
        for k, (below, above) in enumerate(gaps):
            use &= above if k < piece else below
        found.append(use)
    return found


def _comparison(a: Tracked, b: Tracked | None) -> tuple[Any, Any]:
    """Where certainly a <= b, and where a >= b, on a cell that holds the point inside: there
    a - b has no strict sign change, and vanishes throughout if it does at the point."""
    gap = a if b is None else minus(a, b)
    error = 0.0 if gap.error is None else gap.error
    tie = (gap.value == 0) & (error == 0)
    return (gap.value < -error) | tie, (gap.value > error) | tie


def _run(step: Step, parts: list[Sides], extra: Any, factor: Any) -> list[Sides]:
    def visit(eqn, operands, _where):
        operands = [
            o if isinstance(o, Sides) else Sides(Tracked(o), Tracked(o), None) for o in operands
        ]
        if is_identity(eqn):
            return operands
        here = tracked(eqn, [o.here for o in operands], extra)
        there = tracked(eqn, [o.there for o in operands], extra)
        if all(o.changed is None for o in operands):
            return [Sides(h, t, None) for h, t in zip(here, there, strict=True)]
        rule = RULES.get(eqn.primitive.name)
        every = [True] * len(here) if rule is None else rule(eqn, operands, factor)
        return [
            Sides(h, t, jnp.broadcast_to(c, jnp.shape(h.value)))
            for h, t, c in zip(here, there, every, strict=True)
        ]

    return visited(step, parts, visit)


# The table primitive -> rule: which entries of the outputs have changed; no rule: all -------------

Rule = Callable[[JaxprEqn, list[Sides], Any], list[Any]]


def _spread(eqn: JaxprEqn, operands: list[Sides], _: Any) -> list[Any]:
    """Moving and adding: the same operation on 1 where an entry has changed, else 0."""
    marks = []
    for o in operands:
        value = o.here.value
        if o.changed is not None:
            marks.append(o.changed.astype(float))
        else:
            marks.append(jnp.zeros(jnp.shape(value)) if is_float(value) else value)
    return [v > 0 for v in bind(eqn, *marks)]


def _selected(eqn: JaxprEqn, operands: list[Sides], factor: Any) -> list[Any]:
    return [True] if operands[0].changed is not None else _spread(eqn, operands, factor)


def _weighted(eqn: JaxprEqn, operands: list[Sides], factor: Any) -> list[Any]:
    """A product with constants, those that are not zero."""
    if factor is None:
        return [True]
    marks = [factor if o.changed is None else o.changed.astype(float) for o in operands]
    return [v > 0 for v in bind(eqn, *marks)]


def _either(_: JaxprEqn, operands: list[Sides], __: Any) -> list[Any]:
    """Affine in every operand, entry by entry."""
    (first, *rest) = (o.changed for o in operands if o.changed is not None)
    for mark in rest:
        first = first | mark
    return [first]


def _quotient(_: JaxprEqn, operands: list[Sides], __: Any) -> list[Any]:
    return [operands[0].changed if operands[1].changed is None else True]


def _best(sign: int) -> Rule:
    """max (sign 1) or min (-1): kept where one operand has not changed and wins on both sides."""

    def rule(_eqn, operands, _):
        a, b = operands
        kept = False
        ends = zip(_comparison(a.here, b.here), _comparison(a.there, b.there), strict=True)
        below, above = (one & other for one, other in ends)
        for wins, o in ((above, a), (below, b)) if sign > 0 else ((below, a), (above, b)):
            kept = kept | (wins if o.changed is None else wins & ~o.changed)
        return [~kept]

    return rule


RULES: dict[str, Rule] = {
    **dict.fromkeys((*MOVES, "scatter", "scatter-add"), _spread),
    **dict.fromkeys(("reduce_sum", "cumsum", "reduce_window_sum"), _spread),
    **dict.fromkeys((*BILINEAR, "mul"), _weighted),
    **dict.fromkeys(("add", "add_any", "sub", "neg"), _either),
    **dict.fromkeys(("enter_batch", "subtract_batch_mean"), _either),
    "select_n": _selected,
    "div": _quotient,
    "max": _best(1),
    "min": _best(-1),
}

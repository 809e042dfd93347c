"""The affine map of the function on each cell, from those of the cells that it came from.

A stage's pre-activations have one map on all children of a cell. So maps are handed down: on a
child only what its stage decides is evaluated, at its witness point, and differentiated.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict, deque
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.engines.edges import ragged
from jaxregions.engines.points import Ledger, lift
from jaxregions.engines.signs import float_signs
from jaxregions.engines.steps import AHEAD, EARLY, ROWS
from jaxregions.tracing import CPAFunction, compiled, level_values, levels_of, prepare

__all__ = [
    "Family",
    "Generation",
    "SomeMaps",
    "affine_maps",
    "begin_maps",
    "float_maps",
    "outputs_of",
    "put",
    "some_maps",
]

APART = 3  # directions that are differentiated one by one


class SomeMaps(NamedTuple):
    """cells: (n,) in order; slope (n, m, k) and intercept (n, m) of their maps."""

    cells: np.ndarray
    slope: np.ndarray
    intercept: np.ndarray


class Generation(NamedTuple):
    """The cells after some stages: u (F, k) a point inside each of them, parent (F,) the cell of
    the generation before that each lies in, in order."""

    u: np.ndarray
    parent: np.ndarray


class Runs(NamedTuple):
    """The cells of a generation in blocks, each with parents in one block: block i are the cells
    start[i] .. start[i + 1] - 1, their parents are in block parents[i]."""

    start: np.ndarray
    parents: np.ndarray


@dataclasses.dataclass
class Family:
    """Cells after some stages, and what was made of their maps.

    ledger: of their window. generations: the window, then the cells after each stage.
    exactly: maps of cells of the last one, known otherwise.
    runs: per generation its blocks. made: their maps, on the device, from the one needed last on.
    """

    ledger: Ledger
    generations: list[Generation]
    exactly: SomeMaps | None = None
    runs: dict[int, Runs] = dataclasses.field(default_factory=dict)
    made: dict[int, dict[int, Any]] = dataclasses.field(default_factory=lambda: defaultdict(dict))

    @property
    def size(self) -> int:
        """Cells in a block, at most."""
        return ROWS[len(self.generations[-1].u) > ROWS[0]]


def _rows_level(prepared: Any, known: Any, parent: Any, step: Any, u: Any, level: int):
    """Maps of what a level makes, (slopes, value at u) per value; at the last level (k + 1, m), the
    slopes and the intercept.

    known: the same per value that it starts from, of a block of parents, at u - step.

    Slopes are k arrays where these are few: XLA then gathers and moves them in one loop over the
    cells, in half the time.
    """
    slots, k = levels_of(prepared.net)[level].known, step.shape[1]

    def one(maps, step, u):
        slopes, values = [], []
        for slot, (s, v) in zip(slots, maps, strict=True):
            apart = [d.reshape(slot.shape) for d in s] if k <= APART else None
            slopes.append(s.reshape(k, *slot.shape) if apart is None else apart)
            values.append(_moved(v.reshape(slot.shape), slopes[-1], step))
        made, along = jax.linearize(partial(level_values, prepared, level), values)
        if k <= APART:
            new = zip(*(along([s[i] for s in slopes]) for i in range(k)), strict=True)
        else:
            new = jax.vmap(along)(slopes)
        if level < len(prepared.net.stages):
            return list(zip(new, made, strict=True))
        pairs = zip(new, made, strict=True)
        stack = jnp.stack if k <= APART else jnp.asarray
        return [jnp.concatenate([stack(s), _moved(m, s, -u)[None]]) for s, m in pairs]

    taken = jax.tree.map(lambda m: m.at[parent].get(mode="promise_in_bounds"), known)
    return jax.vmap(one)(taken, step, u)


def _moved(value: Any, slopes: Any, step: Any) -> Any:
    return value + sum(t * slopes[i] for i, t in enumerate(step))


def begin_maps(family: Family) -> None:
    """Has the device make the maps of the last generation, unless they are few or very many."""
    level, (count, k) = len(family.generations) - 1, family.generations[-1].u.shape
    numbers = sum(math.prod(s.shape) for s in levels_of(family.ledger.net)[level].made)
    if count > ROWS[0] and 8 * count * (k + 1) * numbers <= EARLY:
        for i in range(len(_runs(family, level).parents)):
            _block(family, level, i)


def outputs_of(net: CPAFunction) -> int:
    """How many numbers the function returns."""
    return sum(math.prod(np.shape(o)) for o in net.program.outputs)


def some_maps(family: Family, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``affine_maps`` of some cells of the last generation, without those of the others."""
    distinct, row = np.unique(cells, return_inverse=True)
    wanted, generations = distinct, []
    for generation in family.generations[::-1]:
        above, parent = np.unique(generation.parent.take(wanted), return_inverse=True)
        generations.append(Generation(generation.u.take(wanted, axis=0), parent))
        wanted = above
    slope, intercept = affine_maps(Family(family.ledger, generations[::-1]))
    put(family.exactly, distinct, slope, intercept)
    if len(row) == len(slope) and (row == np.arange(len(row))).all():
        return slope, intercept
    return slope[row], intercept[row]


def affine_maps(family: Family) -> tuple[np.ndarray, np.ndarray]:
    """f = A u + a on every cell of the last generation, u the slice coordinates.

    Returns:
      A (F, m, k) and a (F, m), float64, m the flattened outputs, from Jacobian-vector products.
    """
    (count, k), outputs = family.generations[-1].u.shape, outputs_of(family.ledger.net)
    found = np.empty((count, k + 1, outputs))
    last, running = len(family.generations) - 1, deque()
    start = _runs(family, last).start.tolist()

    def fetch():
        i, [rows] = running.popleft()
        here = found[start[i] : start[i + 1]]
        here[:] = np.asarray(rows)[: len(here)]

    for i in range(len(start) - 1):
        running.append((i, _block(family, last, i)))
        del family.made[last][i]
        if len(running) > AHEAD:
            fetch()
    while running:
        fetch()
    slope, intercept = np.swapaxes(found[:, :k], 1, 2), found[:, k]
    put(family.exactly, np.arange(count), slope, intercept)
    return slope, intercept


def float_maps(family: Family, signs: list[np.ndarray], cells: np.ndarray) -> np.ndarray:
    """(n,) of which last cells the float64 maps are theirs: certain signs at their points, and at
    those of the cells that they came from, are the cells' own.

    Args:
      signs: per stage, on all last cells. cells: (n,) the numbers of those that are asked about.
    """
    sure, at = np.ones(len(cells), bool), cells
    for stage in reversed(range(len(signs) if len(cells) else 0)):
        u, parent = family.generations[stage + 1]
        distinct, row = np.unique(at, return_inverse=True)
        found = float_signs(family.ledger, u.take(distinct, axis=0), stage)
        sure &= (found.take(row, axis=0) == signs[stage].take(cells, axis=0)).all(axis=1)
        at = parent.take(at)
    return sure


def put(
    known: SomeMaps | None, cells: np.ndarray, slope: np.ndarray, intercept: np.ndarray
) -> None:
    """Known maps into those of some cells, in order."""
    if known is not None and len(known.cells):
        _, here, there = np.intersect1d(cells, known.cells, True, return_indices=True)
        slope[here], intercept[here] = known.slope[there], known.intercept[there]


def _runs(family: Family, level: int) -> Runs:
    """The blocks of a generation."""
    if level not in family.runs:
        parent, size = family.generations[level].parent, family.size
        above = _runs(family, level - 1).start if level else np.arange(2)
        first = np.searchsorted(parent, above)
        count = -(-np.diff(first) // size)
        block, place = ragged(count)
        start = np.append(first[:-1].take(block) + size * place, len(parent))
        family.runs[level] = Runs(start, block)
    return family.runs[level]


def _block(family: Family, level: int, i: int) -> Any:
    """The maps that a level makes on a block of its cells.

    The block of their parents is made when it is needed and kept until the next one is.
    """
    made, size, net = family.made[level], family.size, family.ledger.net
    if i not in made:
        start, above = _runs(family, level)
        part, j = slice(start[i], start[i + 1]), int(above[i])
        u, parents = (column[part] for column in family.generations[level])
        known = _block(family, level - 1, j) if level else _origin(family)
        first = _runs(family, level - 1).start[j] if level else 0
        for old in [b for b in family.made[level - 1] if b < j]:
            del family.made[level - 1][old]
        before = family.generations[max(level - 1, 0)].u.take(parents, axis=0)
        rows = parents - first, u - before, u
        if len(u) < size:
            rows = tuple(np.resize(r, (size, *r.shape[1:])) for r in rows)
        with jax.enable_x64(True):
            prepared = prepare(net)
            run = compiled(_rows_level, prepared.structure, static=(5,))
            made[i] = run(prepared, known, *rows, level)
    return made[i]


def _origin(family: Family) -> list[tuple[Any, np.ndarray]]:
    """The input's map: the directions of the window, and its centre."""
    ledger, u, size = family.ledger, family.generations[0].u, family.size
    x, _ = lift(ledger.frame, ledger.vertices.rows(slice(0, 1))._replace(u=u))
    basis, k = ledger.frame.basis, u.shape[1]
    axes = np.eye(k) if basis is None else basis.reshape(-1, k).T
    slopes = np.resize(axes, (size, *axes.shape))
    centre = np.resize(x, (size, x.shape[1]))
    return [([*np.moveaxis(slopes, 1, 0)] if k <= APART else slopes, centre)]

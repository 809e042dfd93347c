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


@dataclasses.dataclass
class Family:
    """Cells after some stages, and what was made of their maps.

    ledger: of their window. generations: the window, then the cells after each stage.
    exactly: maps of cells of the last one, known otherwise.
    made: per generation its blocks of maps, on the device, from the one needed last on.
    """

    ledger: Ledger
    generations: list[Generation]
    exactly: SomeMaps | None = None
    made: dict[int, dict[int, Any]] = dataclasses.field(default_factory=lambda: defaultdict(dict))

    @property
    def size(self) -> int:
        """Cells in a block."""
        return ROWS[len(self.generations[-1].u) > ROWS[0]]


def _rows_level(prepared: Any, near: Any, far: Any, parent: Any, step: Any, u: Any, level: int):
    """Maps of what a level makes: slopes (directions first) and the values at u; at the last level
    the intercepts.

    near, far: (slopes, values) per value that it knows, of two blocks of parents, at u - step.
    """
    slots = levels_of(prepared.net)[level].known
    last = level == len(prepared.net.stages)

    def one(maps, step, u):
        slopes = [s.reshape(-1, *slot.shape) for (s, _), slot in zip(maps, slots, strict=True)]
        values = [
            _moved(v.reshape(slot.shape), s, step)
            for s, (_, v), slot in zip(slopes, maps, slots, strict=True)
        ]
        made, along = jax.linearize(partial(level_values, prepared, level), values)
        new = jax.vmap(along)(slopes)
        if last:
            made = [_moved(m, s, -u) for m, s in zip(made, new, strict=True)]
        return list(zip(new, made, strict=True))

    known = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[parent], near, far)
    return jax.vmap(one)(known, step, u)


def _moved(value: Any, slopes: Any, step: Any) -> Any:
    return value + sum(t * s for t, s in zip(step, slopes, strict=True))


def begin_maps(family: Family) -> None:
    """Has the device make the maps of the last generation, unless they are few or very many."""
    level, (count, k) = len(family.generations) - 1, family.generations[-1].u.shape
    numbers = sum(math.prod(s.shape) for s in levels_of(family.ledger.net)[level].made)
    if count > ROWS[0] and 8 * count * (k + 1) * numbers <= EARLY:
        for i in range(-(-count // family.size)):
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
    found = np.empty((count, k, outputs)), np.empty((count, outputs))
    last, size, running = len(family.generations) - 1, family.size, deque()

    def fetch():
        start, [block] = running.popleft()
        for column, rows in zip(found, block, strict=True):
            here = column[start : start + size]
            here[:] = np.asarray(rows)[: len(here)]

    for i in range(-(-count // size)):
        running.append((i * size, _block(family, last, i)))
        del family.made[last][i]
        if len(running) > AHEAD:
            fetch()
    while running:
        fetch()
    slope, intercept = np.swapaxes(found[0], 1, 2), found[1]
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


def _block(family: Family, level: int, i: int) -> Any:
    """The maps that a level makes on a block of its cells.

    The parents of a block lie in one block or two that follow each other, which are made when they
    are needed and kept until the next are.
    """
    made, size, net = family.made[level], family.size, family.ledger.net
    if i not in made:
        part = slice(i * size, (i + 1) * size)
        u, parents = (column[part] for column in family.generations[level])
        near, far = int(parents[0]) // size, int(parents[-1]) // size
        known = [_block(family, level - 1, j) if level else _origin(family) for j in (near, far)]
        for j in [j for j in family.made[level - 1] if j < near]:
            del family.made[level - 1][j]
        before = family.generations[max(level - 1, 0)].u.take(parents, axis=0)
        rows = parents - near * size, u - before, u
        if len(u) < size:
            rows = tuple(np.resize(r, (size, *r.shape[1:])) for r in rows)
        with jax.enable_x64(True):
            prepared = prepare(net)
            run = compiled(_rows_level, prepared.structure, static=(6,))
            made[i] = run(prepared, *known, *rows, level)
    return made[i]


def _origin(family: Family) -> list[tuple[np.ndarray, np.ndarray]]:
    """The input's map: the directions of the window, and its centre."""
    ledger, u, size = family.ledger, family.generations[0].u, family.size
    x, _ = lift(ledger.frame, ledger.vertices.rows(slice(0, 1))._replace(u=u))
    basis = ledger.frame.basis
    axes = np.eye(u.shape[1]) if basis is None else basis.reshape(-1, u.shape[1]).T
    return [(np.resize(axes, (size, *axes.shape)), np.resize(x, (size, x.shape[1])))]

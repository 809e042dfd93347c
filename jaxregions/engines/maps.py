"""The affine map of the function on each cell, from those of the cells that it came from.

A stage's pre-activations have one map on all children of a cell. So maps are handed down: on a
child only what its stage decides is evaluated, at its witness point, and differentiated.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.engines.points import Ledger, lift
from jaxregions.engines.steps import ROWS
from jaxregions.tracing import compiled, level_values, levels_of, prepare

__all__ = ["Generation", "affine_maps"]

BYTES = 256 << 20  # maps held at once, beside the result


class Generation(NamedTuple):
    """The cells after some stages: u (F, k) a point inside each of them, parent (F,) the cell of
    the generation before that each lies in, in order."""

    u: np.ndarray
    parent: np.ndarray


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


def affine_maps(inner: Ledger, family: list[Generation]) -> tuple[np.ndarray, np.ndarray]:
    """f = A u + a on every cell of the last generation, u the slice coordinates.

    Args:
      inner: of their witness points.
      family: the window, and the cells after each stage.

    Returns:
      A (F, m, k) and a (F, m), float64, m the flattened outputs, from Jacobian-vector products.
    """
    net, (count, k) = inner.net, family[-1].u.shape
    outputs = sum(math.prod(np.shape(o)) for o in net.program.outputs)
    found = np.empty((count, k, outputs)), np.empty((count, outputs))
    sizes = [sum(math.prod(s.shape) for s in level.made) for level in levels_of(net)]
    held = sum(8 * (k + 1) * n * len(g.u) for n, g in zip(sizes, family, strict=True))
    stops = np.linspace(0, count, 1 + min(count, 1 + held // BYTES)).astype(int).tolist()
    for low, high in pairwise(stops):
        _fill([column[low:high] for column in found], inner, _ancestry(family, low, high))
    return np.swapaxes(found[0], 1, 2), found[1]


def _ancestry(family: list[Generation], low: int, high: int) -> list[Generation]:
    """Cells low .. high - 1 of the last generation and those that they came from."""
    found = []
    for u, parent in family[::-1]:
        mine = parent[low:high]
        found.append(Generation(u[low:high], mine - mine[0]))
        low, high = int(mine[0]), int(mine[-1]) + 1
    return found[::-1]


def _fill(out: list[np.ndarray], inner: Ledger, family: list[Generation]) -> None:
    """Slopes, directions first, and intercepts.

    Cells go in blocks of one size, so that a block's parents lie in two blocks at most; the device
    keeps all blocks but the last generation's.
    """
    net, (count, k) = inner.net, family[-1].u.shape
    size = ROWS[count > ROWS[0]]
    x, _ = lift(inner.frame, inner.vertices.rows(slice(0, 1))._replace(u=family[0].u))
    basis = inner.frame.basis
    axes = np.eye(k) if basis is None else basis.reshape(-1, k).T
    made: list[Any] = [[(np.resize(axes, (size, *axes.shape)), np.resize(x, (size, x.shape[1])))]]
    above = family[0].u
    with jax.enable_x64(True):
        prepared = prepare(net)
        run = compiled(_rows_level, prepared.structure, static=(6,))
        for level, (u, parent) in enumerate(family):
            step, known, made = u - above.take(parent, axis=0), made, []
            for low in range(0, len(u), size):
                part, near = slice(low, low + size), int(parent[low]) // size
                far = known[min(near + 1, len(known) - 1)]
                rows = (parent[part] - near * size, step[part], u[part])
                if len(rows[0]) < size:
                    rows = tuple(np.resize(r, (size, *r.shape[1:])) for r in rows)
                made.append(run(prepared, known[near], far, *rows, level))
            above = u
        for i, [maps] in enumerate(made):
            for column, block in zip(out, maps, strict=True):
                here = column[i * size : (i + 1) * size]
                here[:] = np.asarray(block)[: len(here)]

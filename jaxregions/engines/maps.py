"""The affine map of the function on each cell, from those of the cells that it came from.

A stage's pre-activations have one map on all children of a cell. So maps are handed down: on a
child only what its stage decides is evaluated, at its witness point, and differentiated.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.engines.points import Ledger, lift
from jaxregions.engines.steps import AHEAD, ROWS
from jaxregions.tracing import compiled, level_values, levels_of, prepare

__all__ = ["Generation", "affine_maps"]


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
    for part, [block] in _blocks(inner, family, ROWS[count > ROWS[0]]):
        for column, rows in zip(found, block, strict=True):
            here = column[part]
            here[:] = np.asarray(rows)[: len(here)]
    return np.swapaxes(found[0], 1, 2), found[1]


def _blocks(inner: Ledger, family: list[Generation], size: int) -> Iterator[tuple[slice, Any]]:
    """The last generation in blocks of one size, some of them ahead of time.

    The parents of a block lie in one block or two that follow each other, which are made when they
    are needed and kept until the next are.
    """
    k = family[0].u.shape[1]
    x, _ = lift(inner.frame, inner.vertices.rows(slice(0, 1))._replace(u=family[0].u))
    basis = inner.frame.basis
    axes = np.eye(k) if basis is None else basis.reshape(-1, k).T
    above = [family[0], *family[:-1]]
    steps = [g.u - a.u.take(g.parent, axis=0) for a, g in zip(above, family, strict=True)]
    kept: list[dict[int, Any]] = [{} for _ in range(len(family) + 1)]
    kept[0][0] = [(np.resize(axes, (size, *axes.shape)), np.resize(x, (size, x.shape[1])))]
    prepared = prepare(inner.net)
    run = compiled(_rows_level, prepared.structure, static=(6,))

    def made(level: int, i: int) -> Any:
        if i not in kept[level + 1]:
            part, (u, parent) = slice(i * size, (i + 1) * size), family[level]
            parents = parent[part]
            near, far = int(parents[0]) // size, int(parents[-1]) // size
            rows = parents - near * size, steps[level][part], u[part]
            if len(parents) < size:
                rows = tuple(np.resize(r, (size, *r.shape[1:])) for r in rows)
            known = [kept[0][0] if not level else made(level - 1, j) for j in (near, far)]
            kept[level] = dict(zip((near, far), known, strict=True))
            kept[level + 1][i] = run(prepared, *known, *rows, level)
        return kept[level + 1][i]

    count, last, running = len(family[-1].u), len(family) - 1, deque()
    for i in range(-(-count // size)):
        with jax.enable_x64(True):
            running.append((slice(i * size, min((i + 1) * size, count)), made(last, i)))
        kept[-1].clear()
        if len(running) > AHEAD:
            yield running.popleft()
    yield from running

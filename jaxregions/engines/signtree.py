"""The sign trees of one stage in many convex cells at once.

A node is a cell and signs of some of the stage's switching values; a value that takes both signs
there splits it. One value after the other, for all nodes together: the node's point shows one
sign; a margin program finds a point with the other, or multipliers that refute it. Both are
checked with rigorous bounds, what floats leave open is decided in rationals. Values that do not
cross a cell are refuted there once and never branched on.

Coordinates are in units of the window's radii; rows are scaled to length one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxregions.engines.certificates import ABOVE, ALONE, BELOW, LEAF, OPEN, SPLIT, ZERO
from jaxregions.engines.search import Cell, Search, settled_rows
from jaxregions.engines.sides import FOUND, UNSETTLED, Batch, Tests, centred, exact_steps, tested

__all__ = ["children"]

_NODES = 1 << 14  # processed together, of few dimensions


class Nodes(NamedTuple):
    """level: how many values have been looked at. Per node (N,): parent, point (N, k); unit, sign:
    (N, D) the signs it was split by, sign 0: none; size: how many; weight: of a sample. step,
    branch: where its next step in the certificate is linked."""

    level: int
    parent: np.ndarray
    point: np.ndarray
    unit: np.ndarray
    sign: np.ndarray
    size: np.ndarray
    weight: np.ndarray
    step: np.ndarray
    branch: np.ndarray

    def rows(self, index) -> Nodes:
        return Nodes(self.level, *(column[index] for column in self[1:]))


def children(search: Search, cells: list[Cell]) -> Iterator[list[Cell]]:
    """The cells into which their stage cuts these, as they are found; none in the last stage,
    where they are only counted unless the search keeps them."""
    window = np.array([c.window for c in cells])
    batch, unit, cut, nodes = _begin(search, cells, window)
    stack = [nodes]
    while stack:
        if search.out_of_time():
            return
        nodes = stack.pop()
        nodes = nodes.rows(search.going[window[nodes.parent]])
        if not len(nodes.parent):
            continue
        if len(nodes.parent) > (_NODES if nodes.point.shape[1] <= 12 else _NODES >> 4):
            middle = len(nodes.parent) // 2
            stack += [nodes.rows(slice(middle, None)), nodes.rows(slice(middle))]
            continue
        if search.sample is not None:
            kept, factor = search.sample.thinned(window[nodes.parent])
            nodes = nodes.rows(kept)
            nodes = nodes._replace(weight=nodes.weight * factor)
        leaf = cut[nodes.parent] <= nodes.level
        if leaf.any():
            found = _leaves(search, batch, nodes.rows(leaf))
            if found:
                yield found
            nodes = nodes.rows(~leaf)
        if len(nodes.parent):
            stack.append(_split(search, batch, window, unit, nodes))
    np.subtract.at(search.pending, window, 1)


def _begin(search: Search, cells: list[Cell], window: np.ndarray):
    """The batch; (P, L) the values that cut each cell and (P,) how many; the nodes at the top."""
    stage, count = cells[0].stage, len(cells)
    rows = [settled_rows(search, c) for c in cells]
    batch = Batch.of(search, cells, rows)
    zero = np.stack([r.zero for r in rows])
    own = slice(batch.fixed, None)
    value, error = batch.value[:, own], batch.error[:, own]
    reach = np.abs(batch.slope[:, own]).sum(axis=-1)
    above, below = ~zero & (value - reach > error), ~zero & (-value - reach > error)
    point = np.stack([c.u for c in cells]) / search.radius[window]
    decided = [(above, ABOVE), (below, BELOW), (zero, ZERO)]
    proof = np.full(zero.shape, ALONE)
    kind = np.full(zero.shape, SPLIT)
    for mask, name in decided:
        kind[mask] = name
    parent, unit = np.nonzero(kind == SPLIT)
    batch.order, batch.cut = np.argsort(kind != SPLIT, axis=1), (kind == SPLIT).sum(axis=1)
    none = np.zeros((len(parent), 0), np.int64)
    side = batch.side(parent, unit, point[parent])
    for sign in (1, -1):
        ask = np.flatnonzero(side != sign)
        if sign == -1:  # a value whose sign at the witness is not known is asked twice
            ask = ask[(side[ask] != 0) | (kind[parent[ask], unit[ask]] == SPLIT)]
        tests = Tests(parent[ask], none[ask], none[ask], unit[ask], np.full(len(ask), sign))
        answer = tested(search, batch, tests)
        out = answer.kind != FOUND
        at = parent[ask[out]], unit[ask[out]]
        kind[at] = np.where(answer.kind[out] == UNSETTLED, OPEN, BELOW if sign > 0 else ABOVE)
        proof[at] = answer.proof[out]
        batch.margin[parent[ask], unit[ask]] = answer.margin
    batch.programs.clear()  # fewer rows from here on
    search.saw(stage, window, kind)
    batch.order = order = np.argsort(
        np.where(kind == SPLIT, batch.margin, np.inf), axis=1, kind="stable"
    )
    batch.cut = cut = (kind == SPLIT).sum(axis=1)
    step = branch = np.full(count, -1)
    if search.recorder is not None:
        numbers = np.array([c.number for c in cells])
        owner, entry = np.nonzero(kind != SPLIT)
        links = search.recorder.chain(
            numbers, owner, kind[owner, entry], entry, proof[owner, entry]
        )
        step, branch = links
    nodes = Nodes(
        0,
        np.arange(count),
        point,
        np.zeros((count, 0), np.int64),
        np.zeros((count, 0), np.int8),
        np.zeros(count, np.int64),
        np.array([c.weight for c in cells]),
        step,
        branch,
    )
    return batch, order, cut, nodes


def _split(search: Search, batch: Batch, window, order, nodes: Nodes) -> Nodes:
    """The nodes after the next value of their cell's list was looked at."""
    count = len(nodes.parent)
    unit = order[nodes.parent, nodes.level]
    side = batch.side(nodes.parent, unit, nodes.point)
    node = np.concatenate([np.flatnonzero(side <= 0), np.flatnonzero(side >= 0)])
    sign = np.repeat([1, -1], [(side <= 0).sum(), (side >= 0).sum()])
    tests = Tests(nodes.parent[node], nodes.unit[node], nodes.sign[node], unit[node], sign)
    answer = tested(search, batch, tests)
    has = np.stack([side > 0, side < 0])
    point = np.stack([nodes.point, nodes.point])
    proof = np.full(count, ALONE)
    won, lost = answer.kind == FOUND, answer.kind != FOUND
    minus = (sign < 0).astype(np.int64)
    has[minus[won], node[won]] = True
    point[minus[won], node[won]] = answer.point[won]
    proof[node[lost]] = answer.proof[lost]
    both = np.asarray(has.all(axis=0))
    kind = np.where(both, SPLIT, np.where(has[0], ABOVE, BELOW))
    kind[node[answer.kind == UNSETTLED]] = OPEN
    stage = batch.cells[0].stage
    step, branch = nodes.step, nodes.branch
    if search.recorder is not None:
        step = search.recorder.follow(step, branch, kind, unit, np.where(both, ALONE, proof))
        branch = np.zeros(count, np.int64)
    here = window[nodes.parent]
    search.saw_some(stage, here, unit, kind)
    if search.sample is None:
        search.split(stage, here[both])
    columns: list[np.ndarray] = [nodes.unit, nodes.sign]
    if both.any() and nodes.size[both].max() == nodes.unit.shape[1]:
        columns = [np.pad(c, ((0, 0), (0, 1))) for c in columns]
    parts = []
    for minus in range(2):
        present = np.asarray(has[minus])
        own = np.flatnonzero(present | (~both & ~has.any(axis=0) & (minus == 0)))
        units, signs, size = columns[0][own], columns[1][own], nodes.size[own].copy()
        cut = np.flatnonzero(both[own])
        units[cut, size[cut]], signs[cut, size[cut]] = unit[own[cut]], -1 if minus else 1
        size[cut] += 1
        link = np.where(both[own], minus, branch[own])
        parts.append(
            (
                nodes.parent[own],
                point[minus, own],
                units,
                signs,
                size,
                nodes.weight[own],
                step[own],
                link,
            )
        )
    return Nodes(nodes.level + 1, *map(np.concatenate, zip(*parts, strict=True)))


def _leaves(search: Search, batch: Batch, nodes: Nodes) -> list[Cell]:
    """The cells of the next stage; of the last, only what is asked of them unless all are kept."""
    stage = batch.cells[0].stage + 1
    window = np.array([c.window for c in batch.cells])[nodes.parent]
    radius = search.radius[window]
    last = stage == len(search.net.stages) and not search.keep
    if last:
        if search.recorder is not None:
            numbers = np.array([c.number for c in batch.cells])[nodes.parent]
            u = nodes.point * radius
            made = search.recorder.add_cells(window, numbers, stage, u, np.full(u.shape, np.nan))
            search.recorder.follow(nodes.step, nodes.branch, LEAF, made, ALONE)
        if search.sample is not None:
            np.add.at(search.sample.leaves, window, nodes.weight)
        return []
    slope, value, error, scale = batch.rows(nodes.parent, nodes.unit, nodes.sign)
    point = centred(slope, value, error, nodes.point)
    u, step = _steps(slope, value, error, point, radius)
    literal = batch.named(nodes.parent, nodes.unit, nodes.sign)
    real = literal[..., 2] != 0
    for i in np.flatnonzero((step == 0).any(axis=1)).tolist():
        step[i] = exact_steps(search, batch.cells[nodes.parent[i]], literal[i][real[i]], u[i])
    thin = (step == 0).any(axis=1)  # floats see no further points of the cell
    if search.recorder is not None:
        numbers = np.array([c.number for c in batch.cells])[nodes.parent]
        made = search.recorder.add_cells(window, numbers, stage, u, step)
        search.recorder.follow(nodes.step, nodes.branch, LEAF, made, ALONE)
    else:
        made = np.full(len(u), -1)
    np.add.at(search.unsettled, window[thin], 1)
    np.add.at(search.pending, window[~thin], 1)
    return [
        Cell(
            int(window[i]),
            stage,
            int(made[i]),
            batch.cells[nodes.parent[i]],
            u[i],
            step[i],
            literal[i][keep],
            slope[i][keep],
            value[i][keep],
            error[i][keep],
            scale[i][keep],
            float(nodes.weight[i]),
        )
        for i, keep in enumerate(real)
        if not thin[i]
    ]


def _steps(slope, value, error, point, radius) -> tuple[np.ndarray, np.ndarray]:
    """Witnesses in input units, and steps along all axes that stay inside the cells."""
    slack = np.maximum(np.einsum("trk,tk->tr", slope, point) + value - 2 * error, 0.0)
    with np.errstate(all="ignore"):
        ratio = slack[..., None] / np.abs(slope)
        ahead = np.where(slope < 0, ratio, np.inf).min(axis=1, initial=np.inf)
        behind = np.where(slope > 0, ratio, np.inf).min(axis=1, initial=np.inf)
    ahead, behind = np.minimum(ahead, 1 - point), np.minimum(behind, 1 + point)
    length = np.where(ahead >= behind, ahead, -behind) * 0.75
    u = point * radius
    return u, (u + length * radius) - u

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

from jaxregions import exact
from jaxregions.engines.certificates import ABOVE, ALONE, BELOW, LEAF, SPLIT, ZERO
from jaxregions.engines.search import Cell, Search, settled_rows
from jaxregions.engines.sides import (
    FOUND,
    Batch,
    Parts,
    centred,
    exact_point,
    exact_steps,
    tested,
)

__all__ = ["Nodes", "begin", "children", "finished", "split"]

_NODES = 1 << 14  # processed together
_FEW = 128  # always
_ENTRIES = 1 << 22  # numbers in their rows and bases


class Nodes(NamedTuple):
    """level: how many values have been looked at. Per node (N,): part of a cell, by the signs it
    was split by; point (N, k) in it, NaN: none that floats can tell; known: its cell's remembered
    points that lie in it, as bits; weight, room: in a random descent, what it stands for, and a
    bound on its margin. step, branch: where its next step in the certificate is linked."""

    level: int
    part: Parts
    point: np.ndarray
    known: np.ndarray
    weight: np.ndarray
    room: np.ndarray
    step: np.ndarray
    branch: np.ndarray

    @property
    def parent(self) -> np.ndarray:
        return self.part.parent

    def rows(self, index) -> Nodes:
        return Nodes(self.level, self.part.rows(index), *(column[index] for column in self[2:]))


def children(search: Search, cells: list[Cell]) -> Iterator[list[Cell]]:
    """The cells into which their stage cuts these, as they are found; none in the last stage,
    where they are only counted unless the search keeps them."""
    window = np.array([c.window for c in cells])
    batch, unit, cut, nodes = begin(search, cells, window)
    stack = [nodes]
    while stack:
        if search.out_of_time():
            return
        if search.recorder is not None:
            search.recorder.piece_done()
        nodes = stack.pop()
        nodes = nodes.rows(search.going[window[nodes.parent]])
        if not len(nodes.parent):
            continue
        if len(nodes.parent) > _at_most(stack, _room(nodes.part, nodes.point)):
            middle = len(nodes.parent) // 2
            stack += [nodes.rows(slice(middle, None)), nodes.rows(slice(middle))]
            continue
        leaf = cut[nodes.parent] <= nodes.level
        if leaf.any():
            found = finished(search, batch, nodes.rows(leaf))
            if found:
                yield found
            nodes = nodes.rows(~leaf)
        if len(nodes.parent):
            stack.append(split(search, batch, window, unit, nodes)[0])
    np.subtract.at(search.pending, window, 1)


def _room(part: Parts, point: np.ndarray) -> int:
    """How many parts of cells, with one row more, are held together."""
    rows, k = part.row.shape[1] + 1, point.shape[1]
    return max(1, min(_NODES, _ENTRIES // (rows * (rows + k))))


def _at_most(stack: list[Nodes], room: int) -> int:
    """How many nodes are processed together; fewer, the more are waiting, so that memory does not
    grow with the depth of the tree."""
    waiting = sum(len(nodes.parent) for nodes in stack)
    return max(min(room, _FEW), room >> min(waiting // room, 32))


def begin(search: Search, cells: list[Cell], window: np.ndarray, ask: bool = True):
    """The batch; (P, L) the values that cut each cell and (P,) how many; the nodes at the top.

    ask: whether values cut a cell; else those are listed that may, by the box alone, and those
      first that cut off most of it, which keeps the trees of siblings of like size.
    """
    stage, count = cells[0].stage, len(cells)
    rows = [settled_rows(search, c) for c in cells]
    batch = Batch.of(search, cells, rows)
    zero = np.stack([r.zero for r in rows])
    own = slice(batch.fixed, None)
    value, error = batch.value[:, own], batch.error[:, own]
    reach = np.abs(batch.slope[:, own]).sum(axis=-1)
    above, below = ~zero & (value - reach > error), ~zero & (-value - reach > error)
    point = np.stack([c.u if c.spans is None else c.u * np.nan for c in cells])
    point = point / search.radius[window]
    decided = [(above, ABOVE), (below, BELOW), (zero, ZERO)]
    proof = np.full(zero.shape, ALONE)
    kind = np.full(zero.shape, SPLIT)
    for mask, name in decided:
        kind[mask] = name
    parent, unit = np.nonzero(kind == SPLIT)
    whole = batch.whole.of_width(batch.fixed + 1)
    side = batch.side(parent, unit, point[parent])
    found, together = [(parent[:0], point[:0])], _room(whole, point)
    batch.margin[:] = reach - np.abs(value)
    for sign in (1, -1) if ask else ():
        every = np.flatnonzero(side != sign)
        if sign == -1:  # a value whose sign at the witness is not known is asked twice
            every = every[(side[every] != 0) | (kind[parent[every], unit[every]] == SPLIT)]
        for low in range(0, len(every), together):
            here = every[low : low + together]
            tests = whole.rows(parent[here]).cut(batch.fixed + unit[here], sign)
            answer = tested(search, batch, tests)
            out = answer.kind != FOUND
            found.append((parent[here[~out]], answer.point[~out]))
            at = parent[here[out]], unit[here[out]]
            kind[at] = BELOW if sign > 0 else ABOVE
            proof[at] = answer.proof[out]
            batch.margin[parent[here], unit[here]] = answer.margin
    search.saw(stage, window, kind)
    margin = batch.margin if ask else -batch.margin
    order = np.argsort(np.where(kind == SPLIT, margin, np.inf), axis=1, kind="stable")
    cut = (kind == SPLIT).sum(axis=1)
    step = branch = np.full(count, -1)
    if search.recorder is not None:
        numbers = np.array([c.number for c in cells])
        owner, entry = np.nonzero(kind != SPLIT)
        links = search.recorder.chain(
            numbers, owner, kind[owner, entry], entry, proof[owner, entry]
        )
        step, branch = links
    known = batch.remember(*map(np.concatenate, zip(*found, strict=True)))
    weight, room = np.array([(c.weight, c.room) for c in cells]).T
    nodes = Nodes(0, whole, point, known, weight, room, step, branch)
    return batch, order, cut, nodes


def split(search: Search, batch: Batch, window, order, nodes: Nodes) -> tuple[Nodes, np.ndarray]:
    """The nodes after the next value of their cell's list was looked at, and which each is from."""
    count = len(nodes.parent)
    unit = order[nodes.parent, nodes.level]
    side = batch.side(nodes.parent, unit, nodes.point)
    has = np.stack([side > 0, side < 0])
    point = np.stack([nodes.point, nodes.point])
    known = nodes.known & batch.sees[:, nodes.parent, unit]
    for minus in range(2):
        own = np.flatnonzero(~has[minus] & (known[minus] != 0))
        first = np.log2(known[minus, own] & -known[minus, own]).astype(np.int64)
        point[minus, own], has[minus, own] = batch.pool[nodes.parent[own], first], True
    minus, node = np.nonzero(~has)
    sign = 1 - 2 * minus
    part = nodes.part.of_width(int(nodes.part.size.max()) + 1)
    answer = tested(search, batch, part.rows(node).cut(batch.fixed + unit[node], sign))
    proof = np.full(count, ALONE)
    won, lost = answer.kind == FOUND, answer.kind != FOUND
    has[minus[won], node[won]] = True
    point[minus[won], node[won]] = answer.point[won]
    proof[node[lost]] = answer.proof[lost]
    both = np.asarray(has.all(axis=0))
    kind = np.where(both, SPLIT, np.where(has[0], ABOVE, BELOW))
    stage = batch.cells[0].stage
    step, branch = nodes.step, nodes.branch
    if search.recorder is not None:
        step = search.recorder.follow(step, branch, kind, unit, np.where(both, ALONE, proof))
        branch = np.zeros(count, np.int64)
    here = window[nodes.parent]
    search.saw_some(stage, here, unit, kind)
    search.split(stage, here[both])
    point[0, ~has[0]] = point[1, ~has[0]]
    parts, columns = [], []
    for branch_sign, own in ((1, both), (-1, both), (0, ~both)):
        new, mine = part.rows(own), point[int(branch_sign < 0), own]
        link, room = branch[own], nodes.room[own]
        if branch_sign:
            new = new.cut(batch.fixed + unit[own], branch_sign)
            link = np.full(len(link), int(branch_sign < 0))
            found = won & both[node] & (sign == branch_sign)
            at = np.cumsum(own)[node[found]] - 1
            for old, better in zip(new.bases, answer.bases.rows(found), strict=True):
                old[at] = better
            room[at] = answer.margin[found]
        parts.append(new)
        seen = known[int(branch_sign < 0), own] if branch_sign else nodes.known[own]
        columns.append((mine, seen, nodes.weight[own], room, step[own], link))
    joined = map(np.concatenate, zip(*columns, strict=True))
    origin = np.concatenate([np.flatnonzero(both), np.flatnonzero(both), np.flatnonzero(~both)])
    return Nodes(nodes.level + 1, Parts.joined(parts), *joined), origin


def finished(search: Search, batch: Batch, nodes: Nodes) -> list[Cell]:
    """The cells of the next stage; of the last, only what is asked of them unless all are kept."""
    stage = batch.cells[0].stage + 1
    window = np.array([c.window for c in batch.cells])[nodes.parent]
    radius = search.radius[window]
    last = stage == len(search.net.stages) and not search.keep
    if last:
        if search.recorder is not None:
            u = nodes.point * radius
            _spanned(search, batch, nodes, stage, u, np.full(u.shape, np.nan))
        return []
    slope, value, error = batch.rows(nodes.part)
    scale = batch.scale[nodes.parent[:, None], nodes.part.row]
    point = centred(slope, value, error, nodes.point)
    u, step = _steps(slope, value, error, point, radius)
    literal = batch.named(nodes.part)
    size, bases = nodes.part.size.tolist(), nodes.part.bases
    for i in np.flatnonzero((step == 0).any(axis=1)).tolist():
        step[i] = exact_steps(search, batch.cells[nodes.parent[i]], literal[i, : size[i]], u[i])
    made, spans = _spanned(search, batch, nodes, stage, u, step)
    np.add.at(search.pending, window, 1)
    return [
        Cell(
            int(window[i]),
            stage,
            int(made[i]),
            batch.cells[nodes.parent[i]],
            u[i],
            step[i],
            literal[i, :m],
            slope[i, :m],
            value[i, :m],
            error[i, :m],
            scale[i, :m],
            float(nodes.weight[i]),
            float(nodes.room[i]),
            (bases.basic[i, :m], bases.bound[i]),
            spans=spans.get(i),
        )
        for i, m in enumerate(size)
    ]


def _spanned(search: Search, batch: Batch, nodes: Nodes, stage: int, u, step):
    """The numbers of new cells in the certificate, if there is one; and, where floats are too
    coarse for their points, these in rationals: there u and step (N, k) become what is near.

    step: NaN where none is asked for.
    """
    literal, spans = batch.named(nodes.part), {}
    window, numbers = np.array([(c.window, c.number) for c in batch.cells])[nodes.parent].T
    fine = np.finfo(np.float64).tiny  # a product with a smaller radius has no small relative error
    u[(search.radius[window] < fine).any(axis=1)] = np.nan
    coarse = np.isnan(u).any(axis=1) | ((step == 0) | np.isinf(step)).any(axis=1)
    for i in np.flatnonzero(coarse).tolist():
        cell, own = batch.cells[nodes.parent[i]], literal[i, : nodes.part.size[i]]
        spans[i] = exact_point(search, cell, own, u[i])
        u[i], step[i] = ([exact.rounded(x) for x in part] for part in spans[i])
    if search.recorder is None:
        return np.full(len(u), -1), spans
    made = search.recorder.add_cells(window, numbers, stage, u, step, spans)
    search.recorder.follow(nodes.step, nodes.branch, LEAF, made, ALONE)
    return made, spans


def _steps(slope, value, error, point, radius) -> tuple[np.ndarray, np.ndarray]:
    """Witnesses in input units, and steps along all axes that stay inside the cells."""
    slack = np.maximum(np.einsum("trk,tk->tr", slope, point) + value - 2 * error, 0.0)
    with np.errstate(all="ignore"):
        ratio = slack[..., None] / np.abs(slope)
        ahead = np.where(slope < 0, ratio, np.inf).min(axis=1, initial=np.inf)
        behind = np.where(slope > 0, ratio, np.inf).min(axis=1, initial=np.inf)
    known = np.isfinite(error).all(axis=1)[:, None]
    ahead, behind = np.minimum(ahead, 1 - point) * known, np.minimum(behind, 1 + point) * known
    length = np.where(ahead >= behind, ahead, -behind) * 0.75
    u = point * radius
    return u, (u + length * radius) - u

"""Random descents in the sign trees of windows, one a window, all together.

A descent goes down level by level with at most K nodes. Nodes of a level that are left out are
stood for by those that are kept: a node is kept with probability p and its weight divided by p, so
the weights of the leaves that a descent meets have the number of all leaves as expected sum. p is
proportional to weight times ``likely`` leaves: with the true numbers every descent would count.

Source: R. Rubinstein and R. Vaisman, Stochastic enumeration method for counting trees (2014).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions.engines.cells import batch_size, enclose, roots
from jaxregions.engines.points import Frame, frame_of
from jaxregions.engines.potentials import Potential, Steps, likely
from jaxregions.engines.search import Cell, Search
from jaxregions.engines.sides import Batch
from jaxregions.engines.signtree import Nodes, begin, finished, split

__all__ = ["descend", "thinned"]


class Part(NamedTuple):
    """Cells that are begun together, and their nodes of one level. window: (P,) of the cells;
    order (P, L), cut (P,): the values that may cut each, and how many."""

    batch: Batch
    window: np.ndarray
    order: np.ndarray
    cut: np.ndarray
    nodes: Nodes

    @property
    def left(self) -> np.ndarray:
        """(N,) values that are still to be looked at."""
        return self.cut[self.nodes.parent] - self.nodes.level


def descend(
    search: Search,
    rng: np.random.Generator,
    population: int,
    potential: Potential | None,
    steps: Steps,
) -> np.ndarray | None:
    """(W,) per window the weights of the leaves that one descent meets; None: out of time.

    Args:
      population: at most so many nodes of a level.
      potential: for which nodes are kept.
      steps: told what was seen.
    """
    cells, total = roots(search), np.zeros(len(search.radius))
    frame, stages = frame_of(search.windows), len(search.net.stages)
    for stage in range(stages):
        size = batch_size(search, stage)
        level = [_top(search, frame, cells[i : i + size]) for i in range(0, len(cells), size)]
        for part in level:
            steps.begin(stage, part.cut, part.nodes.room)
        below: list[Cell] = []
        while level:
            grown = []
            for part in level:
                if search.out_of_time():
                    return None
                leaf = part.left == 0
                ends, nodes = part.nodes.rows(leaf), part.nodes.rows(~leaf)
                if stage == stages - 1:
                    np.add.at(total, part.window[ends.parent], ends.weight)
                elif len(ends.parent):
                    below += finished(search, part.batch, ends)
                if len(nodes.parent):
                    grown.append(_split(search, part._replace(nodes=nodes), stage, steps))
            level = _kept(rng, grown, population, potential, stage)
        cells = _chosen(rng, below, population, potential, stage)
    return total


def _top(search: Search, frame: Frame, cells: list[Cell]) -> Part:
    """Most of the nodes are left out before it pays to know which values cut a cell: each node
    asks for itself."""
    enclose(search, frame, cells)
    window = np.array([c.window for c in cells])
    batch, order, cut, nodes = begin(search, cells, window, ask=False)
    return Part(batch, window, order, cut, nodes)


def _split(search: Search, part: Part, stage: int, steps: Steps) -> Part:
    nodes, origin = split(search, part.batch, part.window, part.order, part.nodes)
    steps.split(stage, part.left, part.nodes.room, origin, nodes.room)
    return part._replace(nodes=nodes)


def _kept(rng, level: list[Part], population: int, potential, stage: int) -> list[Part]:
    """A level without the nodes that are left out."""
    if not level:
        return []
    window = np.concatenate([part.window[part.nodes.parent] for part in level])
    logs = [likely(potential, stage, part.left, part.nodes.room) for part in level]
    weight = np.concatenate([part.nodes.weight for part in level])
    keep, factor = thinned(rng, window, np.log2(weight) + np.concatenate(logs), population)
    ends, out = np.cumsum([0, *(len(part.nodes.parent) for part in level)]), []
    for part, start, end in zip(level, ends[:-1], ends[1:], strict=True):
        first, last = np.searchsorted(keep, (start, end))
        if first < last:
            nodes = part.nodes.rows(keep[first:last] - start)
            nodes = nodes._replace(weight=nodes.weight * factor[first:last])
            out.append(part._replace(nodes=nodes))
    return out


def _chosen(rng, cells: list[Cell], population: int, potential, stage: int) -> list[Cell]:
    """The cells of the next stage without those that are left out."""
    if not cells:
        return []
    window = np.array([c.window for c in cells])
    weight, room = np.array([(c.weight, c.room) for c in cells]).T
    logs = np.log2(weight) + likely(potential, stage, np.zeros(len(cells), int), room)
    keep, factor = thinned(rng, window, logs, population)
    for i, f in zip(keep.tolist(), factor.tolist(), strict=True):
        cells[i].weight *= f
    return [cells[i] for i in keep]


def thinned(
    rng: np.random.Generator, window: np.ndarray, logs: np.ndarray, population: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which nodes are kept, and the factors on their weights: systematic sampling in random order
    with probabilities min(1, c 2^logs), c such that ``population`` nodes of a window are expected.

    Args:
      window, logs: (N,).
    """
    count = np.bincount(window)
    order = np.lexsort((rng.random(len(window)), window))
    row = window[order]
    place = np.arange(len(window)) - (np.cumsum(count) - count)[row]
    table = np.full((len(count), count.max(initial=1)), -np.inf)
    table[row, place] = logs[order]
    highest = table.max(axis=1, keepdims=True)
    size = np.exp2(np.maximum(table - np.where(np.isfinite(highest), highest, 0.0), -900.0))
    size[~np.isfinite(table)] = 0.0
    falling = -np.sort(-size, axis=1)
    rest = np.cumsum(falling[:, ::-1], axis=1)[:, ::-1]
    open_ = population - np.arange(size.shape[1])  # places, once the largest so many are kept
    first = np.argmax(open_ * falling <= rest, axis=1)  # the first that is not certain
    at = np.arange(len(count)), first
    with np.errstate(all="ignore"):
        chance = np.minimum(1.0, size * (open_[first] / rest[at])[:, None])
    chance[count <= population] = 1.0
    ends = np.cumsum(chance, axis=1) + rng.random((len(count), 1))
    kept = np.diff(np.floor(ends), axis=1, prepend=0.0) > 0
    mine = kept[row, place]
    keep, factor = order[mine], 1 / chance[row, place][mine]
    by = np.argsort(keep)
    return keep[by], factor[by]

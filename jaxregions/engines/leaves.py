"""The cells of windows of any dimension themselves, stage after stage, from the sign tree."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np

from jaxregions.engines.cells import batch_size, cut, roots
from jaxregions.engines.frontier import Limits, Status
from jaxregions.engines.points import Frame, Ledger, frame_of, ledger_of
from jaxregions.engines.search import Cell, Search, Stopped, new_search
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["Leaves", "leaves", "stage_tables", "witnesses"]


class Leaves(NamedTuple):
    """levels: the cells before the first stage (the windows), after it, and so on, as far as all
    of them were found, in order of their parents. parents: of every level but the first, (F,) the
    cell of the level before that each lies in. Windows that were stopped have none."""

    search: Search
    levels: list[list[Cell]]
    parents: list[np.ndarray]


def leaves(
    net: CPAFunction,
    windows: Window,
    *,
    limits: Limits,
    watch: Callable[[int], None] | None = None,
) -> Leaves:
    """All cells of every window, proven; ``cells.counts(search)`` says which are complete.

    Args:
      windows: one leading axis, any dimension.
      limits: regions per window, and a deadline.
      watch: told the cells so far.
    """
    search = new_search(net, windows, limits, keep=True)
    found, frame = Leaves(search, [roots(search)], []), frame_of(windows)
    try:
        for stage in range(len(net.stages)):
            cells = _after(search, frame, stage, found.levels[-1], watch)
            if search.out_of_time() or not search.going.any():
                break
            place = {id(cell): i for i, cell in enumerate(found.levels[-1])}
            cells = [c for c in cells if search.going[c.window]]
            parent = np.array([place[id(c.parent)] for c in cells], np.int64)
            order = np.argsort(parent, kind="stable")
            found.levels.append([cells[i] for i in order])
            found.parents.append(parent[order])
        else:
            search.pending[search.going] = 0
    except Stopped:
        return found
    except KeyboardInterrupt:
        search.status = Status.INTERRUPTED
    return found


def _after(search: Search, frame: Frame, stage: int, cells: list[Cell], watch) -> list[Cell]:
    """The cells after a stage; incomplete when the search is stopped."""
    rest, after = iter(cells), []
    while batch := list(islice(rest, batch_size(search, stage))):
        for some in cut(search, frame, batch):
            after += some
        if search.out_of_time():
            break
        if watch is not None:
            watch(int(search.bound.sum()))
    return after


def witnesses(net: CPAFunction, windows: Window, cells: list[Cell]) -> Ledger:
    """A ledger whose vertices are the cells' witness points, which are proven to be inside."""
    u = np.array([c.u for c in cells]).reshape(-1, windows.dimension)
    window = np.array([c.window for c in cells], np.int64)
    exactly = {i: c.spans[0] for i, c in enumerate(cells) if c.spans is not None}
    return ledger_of(net, windows, window, u, exactly)


def stage_tables(found: Leaves, signs: list[np.ndarray]) -> list[tuple]:
    """Per stage: cells before and after, units hit, (cell, unit) of the cuts, children and parents.

    Args:
      signs: per stage (F, size) of the last cells, of one window.
    """
    out, ancestor = [], np.arange(len(found.levels[-1]))
    for stage in reversed(range(len(found.parents))):
        parent, sign = found.parents[stage], signs[stage]
        ancestor = parent[ancestor]
        begin = np.flatnonzero(np.diff(ancestor, prepend=-1))
        plus, minus = (np.logical_or.reduceat(s, begin, axis=0) for s in (sign > 0, sign < 0))
        cell, entry = np.nonzero(plus & minus)
        some, flat = plus.any(axis=0) | minus.any(axis=0), (sign == 0).any(axis=0)
        changes = (plus.any(axis=0) & minus.any(axis=0)) | (flat & some)
        unit = found.search.net.stages[stage].unit
        children = np.bincount(parent, minlength=len(found.levels[stage]))
        hits, sizes = len(np.unique(unit[changes])), map(len, found.levels[stage : stage + 2])
        out.append((*sizes, hits, cell, unit[entry], children, parent))
    return out[::-1]

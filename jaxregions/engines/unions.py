"""Activation and affine regions of windows of any dimension: cells joined across facets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxregions._interrupts import Halt
from jaxregions.engines import merging
from jaxregions.engines.cells import CellCounts, counts
from jaxregions.engines.facets import facets
from jaxregions.engines.frontier import Limits, Status
from jaxregions.engines.leaves import Leaves, leaves, witnesses
from jaxregions.engines.search import Stopped
from jaxregions.engines.signs import patterns
from jaxregions.engines.slopes import agreeing_maps
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["count_unions"]

_CELLS = 1 << 16  # of a group of windows, unless one has more


def count_unions(
    net: CPAFunction, windows: Window, *, limits: Limits, watch: Callable[[int, int], None]
) -> tuple[CellCounts, np.ndarray]:
    """Regions of every window, the orders of losers merged; and (W,) its affine regions, -1 where
    the cells are not complete.

    Args: as for ``count_cells``.
    """
    total, low, size = len(windows.center), 0, 1
    halt = limits.halt or Halt()
    limits = limits._replace(halt=halt)
    parts: list[CellCounts] = []
    affine = np.full(total, -1)
    while low < total:
        some = np.arange(low, min(total, low + size))
        found = leaves(net, windows[some], limits=limits, watch=lambda c: watch(low, c))  # noqa: B023
        part = counts(found.search)
        try:
            affine[some] = _joined(found, part)
        except (Stopped, KeyboardInterrupt) as reason:
            late = found.search.status if isinstance(reason, Stopped) else Status.INTERRUPTED
            part.status[part.status == Status.COMPLETE] = late
            part.certified[:] = False
            if merging.has_contests(net):  # cells that are not joined yet
                part.regions[:] = 1
        if (part.status == Status.INTERRUPTED).any():
            halt.set()
        parts.append(part)
        low, each = low + len(some), max(1, len(found.levels[-1]) // len(some))
        size = max(1, min(4 * size, _CELLS // each))
    return _together(parts, len(net.stages)), affine


def _joined(found: Leaves, part: CellCounts) -> np.ndarray:
    """(W,) affine regions; activation regions and hits are corrected in place.

    Raises:
      Stopped: by the search's limits.
    """
    search, net = found.search, found.search.net
    affine, whole = np.full(len(part.regions), -1), part.status == Status.COMPLETE
    contests = merging.has_contests(net)
    if whole.any():
        inner = witnesses(net, search.windows, found.levels[-1])
        inner.pause = search.require_time
        signs = patterns(inner, len(net.stages))
        between = facets(found, signs)
        cells = between.cells(found)
        same, here = np.zeros(len(cells.left), bool), np.unique(cells.window)
        if contests:
            changes, hits = merging.contest_changes(net, cells, signs, len(affine))
            same, part.hits[here] = ~changes, hits[here]
            part.regions[here] = merging.per_window(cells, merging.joined(cells, same))
        leaf, pause = found.levels[-1], search.require_time
        one = merging.joined(cells, agreeing_maps(inner, leaf, between, same, pause))
        affine[here] = merging.per_window(cells, one)
        part.settled_exactly = search.settled_exactly + inner.settled_exactly
        part.programs = search.programs
    affine[~whole] = -1
    if contests:  # cells that are missing may join others
        part.regions[~whole] = 1
    return affine


def _together(parts: list[CellCounts], stages: int) -> CellCounts:
    if not parts:
        none = np.zeros(0, np.int64)
        rows = np.zeros((0, stages), np.int64)
        return CellCounts(none, rows, rows, none.astype(bool), none, 0, 0, None)
    names = ("regions", "by_stage", "hits", "certified", "status")
    columns = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    programs, exact = sum(p.programs for p in parts), sum(p.settled_exactly for p in parts)
    return CellCounts(**columns, programs=programs, settled_exactly=exact, certificate=None)

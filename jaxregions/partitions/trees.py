"""Dimension 3 and above: the sign tree's leaves, and the facets between them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxregions.engines.facets import Facets, facets
from jaxregions.engines.frontier import Limits, Status
from jaxregions.engines.leaves import leaves, stage_tables, witnesses
from jaxregions.engines.maps import Family, Generation, float_maps
from jaxregions.engines.polytopes import polytopes, unshaped
from jaxregions.engines.records import Cells
from jaxregions.engines.search import Stopped
from jaxregions.engines.signs import patterns
from jaxregions.engines.slopes import agreeing_maps, put_exact_maps, without_floats
from jaxregions.partitions.assembly import Found, Labels, assembled, labelled, maps_of
from jaxregions.partitions.records import Partition, StageTable
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["grown"]


def grown(
    net: CPAFunction,
    window: Window,
    limits: Limits,
    affine: bool,
    watch: Callable[[int, int], None],
) -> Partition:
    windows = window.reshape(1)
    found = leaves(net, windows, limits=limits, watch=lambda cells: watch(0, cells))
    search, leaf = found.search, found.levels[-1]
    inner = witnesses(net, windows, leaf)
    status = Status.COMPLETE if search.going[0] else Status.MAX_REGIONS
    if search.status != Status.COMPLETE:
        status = search.status
    signs = patterns(inner, len(found.parents))
    tables = [StageTable(*rows) for rows in stage_tables(found, signs)]
    between, shape = Facets.none(), unshaped(found)

    def labels_now() -> Labels:
        def agree(_: Cells, same: np.ndarray) -> np.ndarray:
            return agreeing_maps(inner, leaf, between, same, search.require_time)

        asked = agree if affine else None
        return labelled(net, between.cells(found), signs, tables, status, asked)

    def maps_now() -> tuple[np.ndarray, np.ndarray]:
        maps = maps_of(family, status)
        if status == Status.COMPLETE:
            coarse = np.array([without_floats(cell) for cell in leaf], bool)
            if search.settled_exactly + inner.settled_exactly:
                coarse |= ~float_maps(family, signs, np.arange(len(leaf)))
            put_exact_maps(inner, leaf, coarse, *maps)
        return maps

    points = [np.array([c.u for c in level]) for level in found.levels]
    parents = [np.zeros(len(points[0]), np.int64), *found.parents]
    family = Family(inner, list(map(Generation, points, parents)))
    try:
        between = facets(found, signs)
        labels = labels_now()
        maps = maps_now()
        shape = polytopes(found, signs)
    except Stopped:
        status = search.status
        labels, maps = labels_now(), maps_now()
    exactly = inner.settled_exactly + search.settled_exactly
    counted = inner.decisions + search.programs, exactly
    bound = None if status == Status.COMPLETE else int(search.bound[0])
    cells = between.cells(found)
    made = Found(cells, shape, signs, maps, labels, status, counted, bound)
    return assembled(net, window, made)

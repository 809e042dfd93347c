"""What the engines find, made into a partition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxregions._records import build
from jaxregions.engines import merging
from jaxregions.engines.frontier import Status
from jaxregions.engines.maps import Family, Generation, SomeMaps, affine_maps, outputs_of, put
from jaxregions.engines.points import Ledger, numbered
from jaxregions.engines.polytopes import Polytopes
from jaxregions.engines.records import Cells
from jaxregions.partitions.records import Partition, StageTable
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["Found", "Labels", "amended", "assembled", "labelled", "maps_of", "maps_or_family"]

HELD = 1 << 28  # bytes of affine maps that a partition makes before it is asked for them


class Labels(NamedTuple):
    """Labels of the cells, and the stages' tables that go with them."""

    region: np.ndarray
    affine_region: np.ndarray
    tables: tuple[StageTable, ...]


class Found(NamedTuple):
    """Of one window. signs: per stage, on the cells; maps: slopes and intercepts, or what makes
    them; counted: decisions, and those in rationals. regions: a proven number, None: as labelled.
    """

    cells: Cells
    shape: Polytopes
    signs: list[np.ndarray]
    maps: tuple[np.ndarray, np.ndarray] | Family
    labels: Labels
    status: Status
    counted: tuple[int, int]
    regions: int | None = None


def maps_of(family: Family, status: Status) -> tuple[np.ndarray, np.ndarray]:
    """The cells' affine maps; NaN where there may be more to come."""
    if status == Status.COMPLETE:
        return affine_maps(family)
    (cells, k), outputs = family.generations[-1].u.shape, outputs_of(family.ledger.net)
    unknown = np.broadcast_to(np.nan, (cells, outputs, k))
    return unknown, unknown[..., 0]


def maps_or_family(family: Family, status: Status) -> tuple[np.ndarray, np.ndarray] | Family:
    """``maps_of``; of many what makes them, which shares no memory with anything else."""
    (cells, k), ledger = family.generations[-1].u.shape, family.ledger
    if status != Status.COMPLETE or 8 * cells * (k + 1) * outputs_of(ledger.net) <= HELD:
        return maps_of(family, status)
    windows = jax.tree.map(np.array, ledger.windows)
    one = ledger.vertices.rows(np.zeros(1, np.int64))
    generations = [Generation(*map(np.array, g)) for g in family.generations]
    return Family(Ledger(ledger.net, windows, one), generations)


def amended(
    maps: tuple[np.ndarray, np.ndarray] | Family, known: SomeMaps
) -> tuple[np.ndarray, np.ndarray] | Family:
    """Maps of which some are known otherwise, and better."""
    if isinstance(maps, Family):
        return dataclasses.replace(maps, exactly=known)
    put(known, np.arange(len(maps[1])), *maps)
    return maps


def labelled(
    net: CPAFunction,
    cells: Cells,
    signs: list[np.ndarray],
    tables: list[StageTable],
    status: Status,
    agree: Callable[[Cells, np.ndarray], np.ndarray] | None,
) -> Labels:
    """Which cells are one activation and one affine region, as far as that is known.

    agree: (cells, known) -> (G,) whether the maps on both sides of each facet agree; None: not
      asked.
    """
    same, one = np.zeros(len(cells.left), bool), np.full(len(cells.window), -1)
    complete = status == Status.COMPLETE
    if complete and merging.has_contests(net):
        changes, found = merging.contest_changes(net, cells, signs, 1)
        same = ~changes
        tables = [t._replace(hits=int(h)) for t, h in zip(tables, found[0], strict=True)]
    if complete and agree is not None:
        one = merging.joined(cells, agree(cells, same))
    return Labels(merging.joined(cells, same), one, tuple(tables))


def assembled(net: CPAFunction, window: Window, found: Found) -> Partition:
    cells, labels, regions = found.cells, found.labels, found.regions
    if regions is None:
        regions = int(labels.region.max()) + 1
    if found.status != Status.COMPLETE and merging.has_contests(net):
        regions = 1
    one = labels.affine_region
    if isinstance(found.maps, Family):
        maps: dict[str, Any] = {"_family": found.maps}
    else:
        maps = dict(zip(("slope", "intercept"), found.maps, strict=True))
    scale = 1.0
    if window.basis is not None:
        basis = np.asarray(window.basis, np.float64)
        scale = np.sqrt(np.linalg.det(basis.T @ basis))
    return build(
        Partition,
        window=window,
        vertices=found.shape.vertices,
        vertex_error=found.shape.error,
        start=found.shape.start,
        corner=found.shape.corner,
        witness=cells.witness,
        witness_inside=cells.inside,
        volume=found.shape.size * scale,
        patterns=tuple(found.signs),
        **maps,
        region=labels.region,
        affine_region=labels.affine_region,
        left=cells.left,
        right=cells.right,
        facet=cells.facet,
        facet_stage=cells.stage,
        facet_unit=_units(net, cells),
        tables=labels.tables,
        activation_regions=regions,
        affine_regions=int(one.max()) + 1 if one[0] >= 0 else -1,
        certified=True,
        status=found.status,
        decisions=found.counted[0],
        settled_exactly=found.counted[1],
    )


def _units(net: CPAFunction, cells: Cells) -> np.ndarray:
    every = np.concatenate([np.zeros(0, np.int64), *(stage.unit for stage in net.stages)])
    return every[numbered(net, cells.stage, cells.entry)]

"""Dimension 1 and 2: the subdivision is refined, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from jaxregions.engines import merging
from jaxregions.engines.affine import same_maps
from jaxregions.engines.flips import face_signs, unpacked
from jaxregions.engines.frontier import ENGINES, Limits, Status, stopped
from jaxregions.engines.maps import Family, Generation, begin_maps
from jaxregions.engines.points import Ledger, corners
from jaxregions.engines.polytopes import Polytopes
from jaxregions.engines.records import hits, sign_bits
from jaxregions.engines.signs import Signs, evaluating, patterns
from jaxregions.engines.steps import EARLY
from jaxregions.partitions.assembly import Found, assembled, labelled, maps_or_family
from jaxregions.partitions.records import Partition, StageTable
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["refined"]


def refined(
    net: CPAFunction,
    window: Window,
    limits: Limits,
    affine: bool,
    watch: Callable[[int, int], None],
) -> Partition:
    windows = window.reshape(1)
    engine = ENGINES[window.dimension]
    ledger = Ledger(net, windows, corners(windows))
    done: tuple[Any, list[StageTable], list[np.ndarray]] = engine.begin(1), [], []
    whole = Generation(np.zeros((1, window.dimension)), np.zeros(1, np.int64))
    family = Family(ledger, [whole])
    status = Status.COMPLETE
    evaluations: list[Callable[[], Signs]] = []

    def evaluate_at(stage: int, vertices: np.ndarray) -> None:
        if stage < len(net.stages):
            evaluations.append(evaluating(ledger, vertices, stage, EARLY))

    evaluate_at(0, done[0].vertices)
    try:
        for stage, layer in enumerate(net.stages):
            mesh, tables, signs = done
            status = _stop(limits, mesh.faces)
            if status != Status.COMPLETE:
                break
            at_vertices = evaluations.pop()()
            begin_maps(family)  # on the device, beside the geometry
            meet = partial(evaluate_at, stage + 1)
            new, cuts = engine.refined(ledger, mesh, stage, at_vertices, meet)
            family.generations.append(Generation(engine.middles(ledger, new), new.parent))
            if stage + 1 == len(net.stages):
                begin_maps(family)
            found = int(hits(sign_bits(cuts, 1), layer.unit)[0])
            cut = cuts.cut_cell, layer.unit[cuts.cut_entry], cuts.children
            table = StageTable(mesh.faces, new.faces, found, *cut, new.parent)
            if window.dimension == 2:
                signs = [*signs, unpacked(*face_signs(new, cuts), layer.size)]
            done = new, [*tables, table], signs
            watch(0, new.faces)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    mesh, tables, signs = done
    del family.generations[len(tables) + 1 :]
    with ThreadPoolExecutor(1) as pool:
        maps = pool.submit(maps_or_family, family, status)
        cells = engine.cells(ledger, mesh, family.generations[-1].u)
        inner = merging.witnesses(ledger, cells)
        signs = _inherited(signs, tables) or patterns(inner, len(tables))
        agree = partial(same_maps, ledger, inner) if affine else None
        labels = labelled(net, cells, signs, tables, status, agree)
        used = np.zeros(ledger.vertices.size, bool)
        used[cells.corner] = True
        number, used = np.cumsum(used) - 1, np.flatnonzero(used)
        corner, u = number[cells.corner], ledger.vertices.u.take(used, axis=0)
    shape = Polytopes(u, ledger.vertices.error[used], cells.start, corner, cells.size)
    counted = ledger.decisions + inner.decisions, ledger.settled_exactly + inner.settled_exactly
    cells = cells._replace(facet=number[cells.facet])
    found = Found(cells, shape, signs, maps.result(), labels, status, counted)
    return assembled(net, window, found)


def _stop(limits: Limits, faces: int) -> Status:
    reason = stopped(limits)
    if reason is not None:
        return reason
    over = limits.regions is not None and faces > limits.regions
    return Status.MAX_REGIONS if over else Status.COMPLETE


def _inherited(signs: list[np.ndarray], tables: list[StageTable]) -> list[np.ndarray]:
    """Per stage the signs on its cells, handed down to the last ones."""
    found, cell = [], None  # all
    for sign, table in zip(signs[::-1], tables[::-1], strict=False):
        found.append(sign if cell is None else sign.take(cell, axis=0))
        cell = table.parent if cell is None else table.parent.take(cell)
    return found[::-1]

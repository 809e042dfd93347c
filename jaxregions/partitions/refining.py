"""Dimension 1 and 2: the subdivision is refined, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxregions.engines import merging
from jaxregions.engines.affine import exact_maps, same_maps
from jaxregions.engines.flips import face_signs, unpacked
from jaxregions.engines.frontier import ENGINES, Limits, Status, Stopped, pausing, stopped
from jaxregions.engines.maps import Family, Generation, begin_maps, float_maps
from jaxregions.engines.points import Ledger, corners
from jaxregions.engines.polytopes import Polytopes
from jaxregions.engines.records import hits, sign_bits
from jaxregions.engines.signs import Signs, close, evaluating, patterns
from jaxregions.engines.steps import EARLY
from jaxregions.partitions.assembly import (
    Found,
    amended,
    assembled,
    labelled,
    maps_of,
    maps_or_family,
)
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
    ledger = Ledger(net, windows, corners(windows), pause=pausing(limits))
    done = Done(engine.begin(1), [], [], False)
    whole = Generation(np.zeros((1, window.dimension)), np.zeros(1, np.int64))
    family = Family(ledger, [whole])
    status = Status.COMPLETE
    evaluations: list[Callable[[], Signs]] = []

    def evaluate_at(stage: int, vertices: np.ndarray) -> None:
        if stage < len(net.stages):
            evaluations.append(evaluating(ledger, vertices, stage, EARLY))

    try:
        evaluate_at(0, done.mesh.vertices)
        for stage, layer in enumerate(net.stages):
            mesh, tables, signs, _ = done
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
            done = Done(new, [*tables, table], signs, done.close or close(ledger, at_vertices))
            watch(0, new.faces)
    except (KeyboardInterrupt, Stopped):
        status = stopped(limits) or Status.INTERRUPTED
    del family.generations[len(done.tables) + 1 :]
    return _finished(window, done, family, status, affine, limits)


class Done(NamedTuple):
    """The stages that were finished: the mesh, their tables, for k = 2 the signs on the cells after
    each of them, and whether float64 may not know them at the cells' middles."""

    mesh: Any
    tables: list[StageTable]
    signs: list[np.ndarray]
    close: bool


def _finished(
    window: Window, done: Done, family: Family, status: Status, affine: bool, limits: Limits
) -> Partition:
    """The partition of the stages that were finished."""
    ledger, net, tables = family.ledger, family.ledger.net, done.tables

    def found(status: Status, maps: Callable[[], Any]) -> Found:
        if status != Status.COMPLETE:
            ledger.pause = inner.pause = lambda: None  # the rest is short
        signs = _inherited(done.signs, tables) or patterns(inner, len(tables))
        agree = partial(same_maps, ledger, inner) if affine else None
        labels = labelled(net, cells, signs, tables, status, agree)
        made = maps()
        if status == Status.COMPLETE:
            every = done.close or ledger.settled_exactly > 0
            doubtful = np.flatnonzero(every | ~cells.inside)
            wrong = doubtful[~float_maps(family, signs, doubtful)]
            if len(wrong):
                made = amended(made, exact_maps(ledger, inner, cells, wrong))
        decisions = ledger.decisions + inner.decisions
        counted = decisions, ledger.settled_exactly + inner.settled_exactly
        renumbered = cells._replace(facet=number[cells.facet])
        return Found(renumbered, shape, signs, made, labels, status, counted)

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(maps_or_family, family, status)
        cells = ENGINES[window.dimension].cells(ledger, done.mesh, family.generations[-1].u)
        inner = merging.witnesses(ledger, cells)
        used = np.zeros(ledger.vertices.size, bool)
        used[cells.corner] = True
        number, used = np.cumsum(used) - 1, np.flatnonzero(used)
        corner, u = number[cells.corner], ledger.vertices.u.take(used, axis=0)
        shape = Polytopes(u, ledger.vertices.error[used], cells.start, corner, cells.size)
        try:
            return assembled(net, window, found(status, making.result))
        except Stopped:
            status = stopped(limits) or Status.INTERRUPTED
            return assembled(net, window, found(status, partial(maps_of, family, status)))


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

"""What every stage did in many windows: the cells of any engine, read by their signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxregions._interrupts import interruptible
from jaxregions._progress import watching
from jaxregions.engines import frontier, merging, vertices
from jaxregions.engines.cells import count_cells
from jaxregions.engines.certificates import Certificate
from jaxregions.engines.certified_signs import certified_signs, require_finished
from jaxregions.engines.complexes import Complex
from jaxregions.engines.frontier import ENGINES, Limits, Status, Tally
from jaxregions.engines.points import Ledger
from jaxregions.engines.signs import patterns
from jaxregions.engines.stage_tables import StageCuts, stage_cuts
from jaxregions.engines.vertex_cells import vertex_patterns
from jaxregions.partitions.records import StageTable
from jaxregions.regions import ANY, NAMES, prepared
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["stage_tables"]

Watch = Callable[[int, int], None]


class Listing(NamedTuple):
    """The last cells of those windows that are COMPLETE.

    status: (W,) of every window. by_stage: (W, S) cells after each stage, as they were counted.
    parts: of (F,) windows and per stage (F, size) signs; cells of other windows do not count.
    """

    status: np.ndarray
    by_stage: np.ndarray
    parts: list[tuple[np.ndarray, list[np.ndarray]]]


def stage_tables(
    f: Callable[[Any], Any],
    source: Window | Certificate,
    *,
    input_shape: tuple[int, ...] | None = None,
    engine: str | None = None,
    max_regions: int | None = None,
    max_seconds: float | None = None,
    progress: bool | None = None,
) -> list[tuple[StageTable, ...] | Status]:
    """What each stage did in every window, all windows in one pass.

    Cells before and after each stage, the units that cross each parent, its children: of cells of
    equal signs, certified as ``count_regions`` is, whose ``by_stage`` are their numbers. From every
    engine the same numbers in the same order: cells of a stage are sorted by their signs in the
    first stage, entry by entry, -1 before 0 before 1, then by those in the second, and so on.

    In a function with maxima over many candidates the rounds of a maximum are stages, and cells
    that differ in the order of losers are not merged, as in ``by_stage``; ``hits`` is -1 in these
    stages. Elsewhere it is that of ``count_regions``.

    Args:
      f, input_shape, engine, progress: as for ``count_regions``; windows that are too
        degenerate or too large for "vertices" go to "cells".
      source: (...,) windows of any dimension; or the certificate of a finished count of them, whose
        trees are read: then f is from ``jr.trace``, and there are neither limits nor engines.
      max_regions, max_seconds: as for ``count_regions``. All last cells of a window are made, so
        time and memory grow with them.

    Returns:
      Per window, flattened, a ``StageTable`` a stage; where the window was not finished, the
      ``Status`` that says why instead. Ctrl-C ends the call with what is finished.

    Raises:
      NotPiecewiseAffineError, ValueError: as ``count_regions``; a certificate of a count that was
        stopped, or of another function.

    Source: MATHEMATICS.md, exact partitions.
    """
    if isinstance(source, Certificate):
        options = (input_shape, engine, max_regions, max_seconds)
        net, found = _from_certificate(f, source, options)
        return _tables(net, found)
    net, limits = prepared(f, source, input_shape, engine, max_regions, max_seconds)
    flat = source.reshape(-1)
    how = _FROM[engine or NAMES.get(source.dimension, ANY)]
    with interruptible() as halt, watching(len(flat.center), progress) as watch:
        return _tables(net, how(net, flat, limits._replace(halt=halt), watch))


def _tables(net: CPAFunction, found: Listing) -> list[tuple[StageTable, ...] | Status]:
    """
    Raises:
      RuntimeError: other cells than were counted.
    """
    done = found.status == Status.COMPLETE
    none = np.zeros(0, np.int64), [np.zeros((0, s.size), np.int8) for s in net.stages]
    every = [none, *found.parts]
    window = np.concatenate([w for w, _ in every])
    keep = done[window]
    signs = [np.concatenate(s)[keep] for s in zip(*(s for _, s in every), strict=True)]
    cuts = stage_cuts(net, window[keep], signs, len(done))
    for cut, counted in zip(cuts, found.by_stage.T, strict=True):
        if (cut.by_window != np.where(done, counted, 0)).any():
            raise RuntimeError("the cells that were found contradict the counts")
    out = [Status(status) for status in found.status.tolist()]
    played = [any(g.contest is not None for g in s.groups) for s in net.stages]
    stages = list(zip(cuts, (s.unit for s in net.stages), played, strict=True))
    return [
        tuple(_table(cut, window, unit, contest) for cut, unit, contest in stages)
        if status == Status.COMPLETE
        else status
        for window, status in enumerate(out)
    ]


def _table(cuts: StageCuts, window: int, unit: np.ndarray, contest: bool) -> StageTable:
    """One window's part of a stage."""
    first, last = np.searchsorted(cuts.window, [window, window + 1])
    cut = slice(*np.searchsorted(cuts.cut_cell, [first, last]))
    new = slice(*np.searchsorted(cuts.parent, [first, last]))
    return StageTable(
        int(last - first),
        int(new.stop - new.start),
        -1 if contest else int(cuts.hits[window]),
        cuts.cut_cell[cut] - first,
        unit[cuts.cut_entry[cut]],
        cuts.children[first:last],
        cuts.parent[new] - first,
    )


# The engines -------------------------------------------------------------------------------------


def _by_refining(net: CPAFunction, flat: Window, limits: Limits, watch: Watch) -> Listing:
    """Dimension 1 and 2, with the geometry of the last stage."""
    module, parts = ENGINES[flat.dimension], []

    def finish(ledger: Ledger, mesh: Any, first: int, _: Tally) -> None:
        faces = module.cells(ledger, mesh, module.middles(ledger, mesh))
        inner = merging.witnesses(ledger, faces)
        parts.append((first + faces.window, patterns(inner, len(net.stages))))

    tally = frontier.explore(net, flat, limits=limits, finish=finish, watch=watch)
    return Listing(tally.status, tally.by_stage, parts)


def _by_vertices(net: CPAFunction, flat: Window, limits: Limits, watch: Watch) -> Listing:
    """From the last subdivision's vertices; what is too degenerate or too large by "cells"."""
    parts = []

    def finish(ledger: Ledger, skeleton: Complex, first: int) -> None:
        window, signs = vertex_patterns(ledger, skeleton)
        parts.append((first + window, signs))

    counts = vertices.count(
        net, flat, limits=limits, watch=lambda cells: watch(0, cells), finish=finish
    )
    left = np.flatnonzero(np.isin(counts.status, vertices.BEYOND))
    if len(left):
        rest = _by_cells(net, flat[left], limits, watch)
        counts.status[left], counts.by_stage[left] = rest.status, rest.by_stage
        parts += [(left[window], signs) for window, signs in rest.parts]
    return Listing(counts.status, counts.by_stage, parts)


def _by_cells(net: CPAFunction, flat: Window, limits: Limits, watch: Watch) -> Listing:
    """From the sign tree's certificate."""
    counts = count_cells(net, flat, limits=limits, certificate=True, watch=watch)
    assert isinstance(counts.certificate, Certificate)
    part = certified_signs(net, counts.certificate, counts.status == Status.COMPLETE)
    return Listing(counts.status, counts.by_stage, [part])


_FROM = {
    "segments": _by_refining,
    "planar": _by_refining,
    "vertices": _by_vertices,
    ANY: _by_cells,
}


def _from_certificate(f: Any, c: Certificate, options: tuple) -> tuple[CPAFunction, Listing]:
    if not isinstance(f, CPAFunction):
        raise ValueError(
            f"f: expected the result of jr.trace with a certificate, received {type(f).__name__}"
        )
    if any(option is not None for option in options):
        raise ValueError(
            "source: expected neither input_shape, engine nor limits with a certificate, received "
            f"{options}"
        )
    stages, windows = len(f.stages), int((c.parent < 0).sum())
    require_finished(c, stages)
    after = [np.bincount(c.window[c.stage == s + 1], minlength=windows) for s in range(stages)]
    by_stage = np.stack(after, axis=1) if after else np.zeros((windows, 0), np.int64)
    whole = np.ones(windows, bool)
    return f, Listing(np.zeros(windows, np.int64), by_stage, [certified_signs(f, c, whole)])

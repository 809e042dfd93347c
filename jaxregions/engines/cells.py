"""Exact region counts in windows of any dimension: a certified sign tree, layer by layer.

A cell of the stages before s is a convex set on which the switching values of stage s are affine.
``children`` splits it by their signs; its children are cells of stage s + 1, the cells
after the last stage are the regions. Cells go depth first in batches, so memory is bounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from jaxregions.engines.certificates import Certificate, Recorder
from jaxregions.engines.enclosures import enclosed_rows
from jaxregions.engines.frontier import Limits, Status
from jaxregions.engines.points import Frame, frame_of
from jaxregions.engines.search import Cell, Search, Stopped, coarse_rows, new_search
from jaxregions.engines.signtree import children
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = [
    "CellCounts",
    "batch_size",
    "count_cells",
    "counts",
    "cut",
    "enclose",
    "explore",
    "roots",
]

_BATCH = 1024  # cells that are split together
_ENTRIES = 1 << 22  # numbers in their rows


@dataclasses.dataclass
class CellCounts:
    """Per window, (W,) unless said otherwise.

    regions: non-empty full-dimensional cells of equal signs; where ``status`` is not COMPLETE a
      proven lower bound.
    by_stage: (W, S) cells after each stage, 0 where that is not finished.
    hits: (W, S) units with a switching value that changes sign in the window; -1 likewise.
    certified: complete: every kept cell has a proven witness and every discarded side a proof.
    status: of ``frontier.Status``.
    programs, settled_exactly: linear programs solved, and decisions made in rationals.
    certificate: of all windows together, or the file it is in, if asked for.
    """

    regions: np.ndarray
    by_stage: np.ndarray
    hits: np.ndarray
    certified: np.ndarray
    status: np.ndarray
    programs: int
    settled_exactly: int
    certificate: Certificate | Path | None


def count_cells(
    net: CPAFunction,
    windows: Window,
    *,
    limits: Limits,
    certificate: bool | Path = False,
    watch: Callable[[int, int], None] | None = None,
) -> CellCounts:
    """Regions of every window.

    Args:
      windows: one leading axis, any dimension.
      limits: regions per window, and a deadline.
      certificate: record what ``jaxregions.verification.verify`` checks, in memory or to a file.
      watch: called with (finished windows, regions so far).
    """
    path = certificate if isinstance(certificate, Path) else None
    recorder = Recorder(windows.dimension, path) if certificate else None
    search = new_search(net, windows, limits, recorder)
    explore(search, watch)
    return counts(search)


def explore(search: Search, watch: Callable[[int, int], None] | None = None) -> None:
    """Runs a search to its end, or to its limits."""
    stages = len(search.net.stages)
    frame = frame_of(search.windows)
    first = roots(search)
    stack: list[tuple[int, Iterator[Cell]]] = [(0, iter(first))] if stages else []
    try:
        while stack and not search.out_of_time():
            stage, cells = stack[-1]
            batch = list(islice(cells, batch_size(search, stage)))
            if not batch:
                stack.pop()
                continue
            grown = cut(search, frame, batch)
            if stage == stages - 1:
                for _ in grown:
                    pass
            else:
                stack.append((stage + 1, chain.from_iterable(grown)))
            if watch is not None:
                watch(int((search.pending == 0).sum()), int(search.bound.sum()))
    except Stopped:
        return
    except KeyboardInterrupt:
        search.status = Status.INTERRUPTED


def batch_size(search: Search, stage: int) -> int:
    """How many cells of a stage are split together."""
    k = search.windows.dimension
    total = sum(s.size for s in search.net.stages[: stage + 1]) + 1
    return max(1, min(_BATCH, _ENTRIES // (total * k)))


def cut(search: Search, frame: Frame, batch: list[Cell]) -> Iterator[list[Cell]]:
    """The children of some cells of one stage, as they are found."""
    enclose(search, frame, batch)
    return children(search, batch)


def enclose(search: Search, frame: Frame, batch: list[Cell]) -> None:
    """Gives some cells of one stage their rows."""
    window = np.array([c.window for c in batch])
    u, step = (np.stack([getattr(c, n) for c in batch]) for n in ("u", "step"))
    radius = search.radius[window]
    rows = enclosed_rows(search.net, frame, window, radius, u, step, batch[0].stage)
    for cell, own in zip(batch, rows, strict=True):
        cell.rows = own if cell.spans is None else coarse_rows(search, cell)


def counts(search: Search) -> CellCounts:
    """What a search found."""
    count, stages = search.splits.shape
    status = np.where(search.going, int(search.status), int(Status.MAX_REGIONS))
    done = search.going & (search.pending == 0)
    status[done] = Status.COMPLETE
    by_stage = 1 + np.cumsum(search.splits, axis=1)
    hits = np.zeros((count, stages), np.int64)
    for stage, ((positive, negative, flat), layer) in enumerate(
        zip(search.seen, search.net.stages, strict=True)
    ):
        changes = (positive & negative) | (flat & (positive | negative))
        window, entry = np.nonzero(changes)
        units = max(layer.units, 1)
        key = np.unique(window * units + layer.unit[entry])
        hits[:, stage] = np.bincount(key // units, minlength=count)
    recorded = search.recorder
    return CellCounts(
        search.bound.copy(),
        np.where(done[:, None], by_stage, 0),
        np.where(done[:, None], hits, -1),
        done,
        status,
        search.programs,
        search.settled_exactly,
        None if recorded is None else recorded.certificate(),
    )


def roots(search: Search) -> list[Cell]:
    """The windows themselves."""
    count, k = search.radius.shape
    numbers = np.full(count, -1)
    if search.recorder is not None:
        every, center = np.arange(count), np.zeros((count, k))
        numbers = search.recorder.add_cells(every, -1, 0, center, search.radius)
    none = np.zeros(0)
    no_rows = np.zeros((0, 3), np.int64), np.zeros((0, k)), none, none, none
    return [
        Cell(window, 0, int(number), None, np.zeros(k), radius, *no_rows)
        for window, (number, radius) in enumerate(zip(numbers, search.radius, strict=True))
    ]

"""One flat frontier of cells over many windows, refined stage by stage within limits.

Windows go in groups whose switching values fit in memory; a group that grows too large is halved,
and the last stage, which needs no geometry, is counted in runs of cells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from jaxregions._interrupts import Halt
from jaxregions.engines import planar, segments
from jaxregions.engines.points import Ledger, corners
from jaxregions.engines.records import hits, sign_bits
from jaxregions.engines.signs import evaluate
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = [
    "ENGINES",
    "UNLIMITED",
    "Limits",
    "Status",
    "Stopped",
    "Tally",
    "explore",
    "pausing",
    "stopped",
]

ENGINES = {1: segments, 2: planar}
BYTES = 256 << 20  # switching values held at once
FIRST_GROUP = 256  # windows; later groups are sized by what these needed
GROUP_VERTICES = 1 << 16
AT_ONCE = 2  # groups: one on the host while the other waits for the device


class Status(IntEnum):
    """Why a count ended. Anything but COMPLETE leaves a proven lower bound.

    MAX_REGIONS, MAX_SECONDS: the limit was reached: raise it, or use smaller windows.
    INTERRUPTED: Ctrl-C.
    DEGENERATE: of the engine "vertices" alone: switching values vanish together in a way that it
      does not order, such as equal hyperplanes; "cells" counts such windows.
    LARGE: of the same: more vertices than it holds at once; "cells" counts such windows, too.
    """

    COMPLETE = 0
    MAX_REGIONS = 1
    MAX_SECONDS = 2
    INTERRUPTED = 3
    DEGENERATE = 4
    LARGE = 5


class Limits(NamedTuple):
    """regions: per window, None: no limit. deadline: a time.monotonic() value. halt: stop now."""

    regions: int | None = None
    deadline: float = math.inf
    halt: Halt | None = None


UNLIMITED = Limits()


class Stopped(Exception):
    """A limit ends the work in the middle of a step; what is in its tallies is proven."""


class Tally(NamedTuple):
    """Per window, filled in place as cells are finished.

    by_stage: (W, S) regions after each stage, 0 where not reached. hits: (W, S), -1 likewise.
    bound: (W,) proven lower bound. status: (W,), -1 while unfinished.
    decisions: [sign decisions, those that needed rationals].
    """

    by_stage: np.ndarray
    hits: np.ndarray
    bound: np.ndarray
    status: np.ndarray
    decisions: np.ndarray


WINDOW_COLUMNS = ("by_stage", "hits", "bound", "status")


def explore(
    net: CPAFunction,
    windows: Window,
    *,
    limits: Limits,
    finish: Callable[[Ledger, Any, int, Tally], None] | None,
    watch: Callable[[int, int], None],
) -> Tally:
    """Regions of every window.

    Args:
      windows: one leading axis, dimension 1 or 2.
      finish: receives (ledger, mesh, first window, tally) of finished groups, with geometry;
        None: the last stage is counted without.
      watch: called with (finished windows, cells so far).
    """
    count, stages = len(windows.center), len(net.stages)
    tally = Tally(
        np.zeros((count, stages), np.int64),
        np.full((count, stages), -1),
        np.ones(count, np.int64),
        np.full(count, -1),
        np.zeros(2, np.int64),
    )
    halt = limits.halt or Halt()
    limits = limits._replace(halt=halt)

    def group(start: int, stop: int) -> Ledger:
        these = windows[np.arange(start, stop)]
        ledger = Ledger(net, these, corners(these), pause=pausing(limits))
        part = tally._replace(**{n: getattr(tally, n)[start:stop] for n in WINDOW_COLUMNS})

        def watched(cells: int) -> None:
            watch(int((tally.status >= 0).sum()), cells)

        try:
            _group(ledger, part, limits, finish, start, watched)
        except Stopped:
            part.status[part.status < 0] = stopped(limits)
        return ledger

    try:
        for ledger in _in_turn(group, count, halt):
            tally.decisions[:] += ledger.decisions, ledger.settled_exactly
    except KeyboardInterrupt:
        tally.status[tally.status < 0] = Status.INTERRUPTED
    return tally


def _in_turn(group: Callable[[int, int], Ledger], count: int, halt: Halt) -> Iterator[Ledger]:
    """All windows in groups; the first shows how large the others may be, which then overlap."""
    if not count:
        return
    first = min(count, FIRST_GROUP)
    ledger = group(0, first)
    yield ledger
    if first == count:
        return
    most = max(1, int(GROUP_VERTICES / (ledger.vertices.size / first)))
    groups = max(AT_ONCE, -(-(count - first) // most))
    stops = np.linspace(first, count, groups + 1).astype(int).tolist()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(group, *span) for span in pairwise(stops)]
        try:
            for future in running:
                yield future.result()
        except BaseException:  # the other group is not waited for
            halt.set()
            raise


def _group(ledger, tally, limits, finish, first, watch) -> None:
    net, engine = ledger.net, ENGINES[ledger.windows.dimension]
    stages = len(net.stages)
    stack = [(engine.begin(len(tally.status)), 0)]
    while stack:
        mesh, stage = stack.pop()
        if stage == stages:
            if finish is not None:
                finish(ledger, mesh, first, tally)
            tally.status[_present(mesh.window)] = Status.COMPLETE
            watch(mesh.faces)
            continue
        runs = _within_limits(engine, mesh, tally, limits)
        if not (len(runs) == 1 and runs[0] is mesh):
            stack += [(run, stage) for run in reversed(runs)]
            continue
        heavy = mesh.size * net.stages[stage].size * 9 > BYTES
        if stage == stages - 1 and finish is None:
            _count_last(ledger, engine, mesh, stage, tally, limits)
            watch(int(tally.bound.sum()))
        elif heavy and mesh.window[0] != mesh.window[-1]:
            stack += [(half, stage) for half in reversed(_halves(engine, mesh))]
        else:
            signs = evaluate(ledger, mesh.vertices, stage)
            new, cuts = engine.refined(ledger, mesh, stage, signs)
            found = hits(sign_bits(cuts, len(tally.status)), net.stages[stage].unit)
            _record(tally, mesh, stage, cuts.children, found)
            watch(new.faces)
            stack.append((new, stage + 1))


def _present(window: np.ndarray) -> np.ndarray:
    """The distinct ones of windows in ascending order."""
    return window[np.flatnonzero(np.diff(window, prepend=-1))]


def _record(tally: Tally, mesh, stage: int, children, found) -> None:
    here = _present(mesh.window)
    after = np.bincount(mesh.window, children, minlength=len(tally.status)).astype(np.int64)
    tally.by_stage[here, stage] = tally.bound[here] = after[here]
    tally.hits[here, stage] = found[here]


def _count_last(ledger, engine, mesh, stage: int, tally: Tally, limits: Limits) -> None:
    """The last stage in runs of cells: bounded memory, no geometry."""
    layer, windows = ledger.net.stages[stage], len(tally.status)
    rows = max(1, BYTES // (9 * max(layer.size, 1)))
    stops = np.unique(np.linspace(0, mesh.faces, 1 - (-mesh.size // rows)).astype(int))
    children, done = np.ones(mesh.faces, np.int64), 0
    bits = np.zeros((3, windows, -(-layer.size // 64)), np.uint64)
    for low, high in zip(stops[:-1].tolist(), stops[1:].tolist(), strict=True):
        if low > 0 and stopped(limits) is not None:
            break
        part = mesh if high - low == mesh.faces else engine.restricted(mesh, low, high)
        try:
            cuts = engine.counted(ledger, part, stage, evaluate(ledger, part.vertices, stage))
        except Stopped:
            break
        children[low:high] = cuts.children
        bits |= sign_bits(cuts, windows)
        done = high
    _record(tally, mesh, stage, children, hits(bits, layer.unit))
    left = _present(mesh.window[done:])  # out of time before these were finished
    tally.by_stage[left, stage], tally.hits[left, stage] = 0, -1
    tally.status[_present(mesh.window)] = Status.COMPLETE
    if len(left):
        tally.status[left] = stopped(limits)


def _within_limits(engine, mesh, tally: Tally, limits: Limits) -> list[Any]:
    """The mesh in runs of windows that may go on; the others get their status."""
    here = _present(mesh.window)
    reason = stopped(limits)
    if reason is not None:
        tally.status[here] = reason
        return []
    if limits.regions is None or (tally.bound[here] <= limits.regions).all():
        return [mesh]
    over = tally.bound > limits.regions
    tally.status[here[over[here]]] = Status.MAX_REGIONS
    keep = ~over[mesh.window]
    edge = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]])))
    return [
        engine.restricted(mesh, a, b)
        for a, b in zip(edge[::2].tolist(), edge[1::2].tolist(), strict=True)
    ]


def stopped(limits: Limits) -> Status | None:
    """Why to stop now."""
    if limits.halt is not None and limits.halt.is_set():
        return Status.INTERRUPTED
    return Status.MAX_SECONDS if time.monotonic() > limits.deadline else None


def pausing(limits: Limits) -> Callable[[], None]:
    """Called between the parts of long work: raises Stopped where the limits are reached."""

    def pause() -> None:
        if stopped(limits) is not None:
            raise Stopped

    return pause


def _halves(engine, mesh) -> list[Any]:
    """The mesh cut in two between windows."""
    breaks = np.flatnonzero(np.diff(mesh.window)) + 1
    middle = int(breaks[np.argmin(np.abs(breaks - mesh.faces // 2))])
    return [engine.restricted(mesh, 0, middle), engine.restricted(mesh, middle, mesh.faces)]

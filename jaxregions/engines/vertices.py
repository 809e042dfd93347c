"""Exact region counts of windows of dimension 3 to about 6, without building a cell.

Cutting by one more switching value adds as many cells as its zero set is cut into by the others:

    cells after a stage = sum over sets S of its switching values of cells(flat of S),

the flat of S: the subdivision before the stage, on the common zeros of S; all of it for S = {},
points for |S| = k. What every flat contributes is found by a sweep over its vertices, which are
the zeros of one more switching value on edges of the flat before.

A rigorous sign for every switching value at every vertex is what all of this rests on. Where one
vanishes at a vertex of the others the subdivision is not simple. Points inside a cell of the stage
before are counted nevertheless, in the last stage and in the first; what else is not simple is
reported. All terms are positive, and sets of switching values with the same zeros come late enough
to be noticed (a set's first basis comes no later than the set), so partial sums are lower bounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from math import comb
from typing import NamedTuple

import numpy as np

from jaxregions import exact
from jaxregions.engines.apexes import MOST, added, rays
from jaxregions.engines.complexes import Apexes, Complex, box_corners, boxes, tables
from jaxregions.engines.frontier import UNLIMITED, Limits, Status, Stopped, pausing, stopped
from jaxregions.engines.points import Ledger, U, Vertices
from jaxregions.engines.records import hits
from jaxregions.engines.signs import Signs, evaluate, packed
from jaxregions.engines.skeleton import (
    Layer,
    Part,
    child,
    edges_of,
    exact_row,
    joined,
    settled,
    unpacked,
)
from jaxregions.engines.sweep import coinciding, crossed, flats, swept
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["BEYOND", "VertexCounts", "count", "subdivision"]

BEYOND = (Status.DEGENERATE, Status.LARGE)  # windows for "cells"

GROUP = 1 << 18  # vertices of a group of windows, unless one window has more
NUMBERS = 1 << 28  # in the vertices of a subdivision


class _Large(Exception):
    """A subdivision has more vertices than are held at once."""


class VertexCounts(NamedTuple):
    """Per window.

    by_stage: (W, S) cells after each stage, 0 where not reached. hits: (W, S) units whose sign
    changes inside the window, -1 likewise. bound: (W,) proven lower bound, the count where
    complete: terms of the sum are added as they are found. status: (W,) a ``Status``.
    decisions: [signs decided, those that needed rationals].
    """

    by_stage: np.ndarray
    hits: np.ndarray
    bound: np.ndarray
    status: np.ndarray
    decisions: np.ndarray


COLUMNS = ("by_stage", "hits", "bound", "status")


@dataclasses.dataclass
class Task:
    """One stage of a group of windows.

    keep: build the vertices of the next subdivision: numbers so far, all parts in ``found``, what
    is new to the ledger in ``fresh``.
    apexes: per window that has some, the switching values that vanish at each.
    counts: (W, D) cells so far, one column a direction. status: (W,) -1 while counted.
    over: a count that is not exceeded. stopped: why to stop now. most, held: how many vertices may
      be kept, and are.
    """

    layer: Layer
    keep: bool
    counts: np.ndarray
    status: np.ndarray
    over: float
    stopped: Callable[[], Status | None]
    watch: Callable[[int], None] | None
    numbers: int
    most: int
    held: int = 0
    found: list[Part] = dataclasses.field(default_factory=list)
    fresh: list[Vertices] = dataclasses.field(default_factory=list)
    apexes: dict[int, list[list[int]]] = dataclasses.field(default_factory=dict)

    @property
    def k(self) -> int:
        return self.layer.sides // 2


def count(
    net: CPAFunction,
    windows: Window,
    *,
    directions: np.ndarray | None = None,
    limits: Limits = UNLIMITED,
    watch: Callable[[int], None] | None = None,
    finish: Callable[[Ledger, Complex, int], None] | None = None,
) -> VertexCounts:
    """Cells of every window after every stage; all orders of a maximum's candidates are cells.

    Args:
      windows: one leading axis, any dimension k >= 1; memory grows with the vertices of the stage
        before the last, which has a limit (LARGE), time with those of the last.
      directions: (D, k) of the sweeps, which must all agree; default: two fixed generic ones.
      limits: asked now and then; Ctrl-C sets their halt, too.
      watch: told the cells so far.
      finish: receives (ledger, subdivision, first window) of groups of windows, with the vertices
        of the last cells of those that are COMPLETE; None: the last stage is counted without.

    Raises:
      ValueError: directions of another shape.
      RuntimeError: directions that disagree: signs at the vertices contradict each other.
    """
    k, total = windows.dimension, len(windows.center)
    directions = np.asarray(_directions(windows) if directions is None else directions, float)
    if directions.ndim != 2 or directions.shape[1] != k or not len(directions):
        raise ValueError(f"directions: expected shape ('D >= 1', {k}), received {directions.shape}")
    counts = _blank(net, windows)
    over = math.inf if limits.regions is None else limits.regions
    reason = partial(stopped, limits)
    low, size = 0, 1
    try:
        while low < total:
            high = min(total, low + size)
            these = windows[np.arange(low, high)]
            ledger = Ledger(net, these, box_corners(these), pause=pausing(limits))
            part = counts._replace(**{n: getattr(counts, n)[low:high] for n in COLUMNS})
            keep = finish is not None
            try:
                skeleton = _group(ledger, part, directions, over, reason, watch, skeletons=keep)
            except _Large:
                if high - low > 1:
                    size = (high - low) // 2
                    _forget(part)
                    continue
                part.status[:] = Status.LARGE
            except Stopped:
                part.status[part.status < 0] = reason()
            else:
                done = part.status[skeleton.window] == Status.COMPLETE
                if finish is not None and done.any():
                    finish(ledger, skeleton.rows(done), low)
            counts.decisions[:] += ledger.decisions, ledger.settled_exactly
            each = -(-ledger.vertices.size // (high - low))
            low, size = high, max(1, min(4 * size, GROUP // each))
    except KeyboardInterrupt:
        left = counts.status[low:]
        left[(left < 0) | (left == Status.COMPLETE)] = Status.INTERRUPTED
        if limits.halt is not None:
            limits.halt.set()
    return counts


def subdivision(
    net: CPAFunction, windows: Window, stopped: Callable[[], Status | None] = lambda: None
) -> tuple[Ledger, Complex, VertexCounts]:
    """The vertices of the final cells too, of the windows whose status is COMPLETE.

    Args:
      net, windows: as for ``count``.
      stopped: asked now and then; a status ends the call with it.
    """
    ledger, out = Ledger(net, windows, box_corners(windows)), _blank(net, windows)
    skeleton = boxes(len(out.status), windows.dimension, tables(2 * windows.dimension))
    try:
        skeleton = _group(
            ledger, out, _directions(windows), math.inf, stopped, None, skeletons=True
        )
    except _Large:
        out.status[:] = Status.LARGE
    done = out.status[skeleton.window] == Status.COMPLETE
    out.decisions[:] = ledger.decisions, ledger.settled_exactly
    return ledger, skeleton.rows(done), out


def _directions(windows: Window) -> np.ndarray:
    return np.random.default_rng(2**61 + 20261123).normal(size=(2, windows.dimension))


def _blank(net: CPAFunction, windows: Window) -> VertexCounts:
    total, stages = len(windows.center), len(net.stages)
    return VertexCounts(
        np.zeros((total, stages), np.int64),
        np.full((total, stages), -1),
        np.ones(total, np.int64),
        np.full(total, -1),
        np.zeros(2, np.int64),
    )


def _forget(out: VertexCounts) -> None:
    """As if these windows had not been counted; what is proven of them stays."""
    out.by_stage[:], out.hits[:], out.status[:] = 0, -1, -1


def _group(
    ledger, out: VertexCounts, directions, over, stopped, watch, *, skeletons=False
) -> Complex:
    """All stages of a few windows; the last one's subdivision only if ``skeletons``.

    Raises:
      _Large: these windows together have too many vertices.
    """
    net, k, windows = ledger.net, ledger.windows.dimension, len(out.status)
    sizes = [s.size for s in net.stages]
    number = 2 * k + np.cumsum([0, *sizes])
    words = tables(int(number[-1]))
    skeleton = boxes(windows, k, words)
    for stage, size in enumerate(sizes):
        inert = np.zeros((windows, size), bool)
        layer = Layer(ledger, stage, int(number[stage]), 2 * k, words, directions, inert)
        keep = skeletons or stage < len(sizes) - 1
        counts = np.zeros((windows, len(directions)), np.int64)
        most = NUMBERS // (max(sizes[stage : stage + 2]) + 16 * k)
        vertices = ledger.vertices.size
        task = Task(layer, keep, counts, out.status, over, stopped, watch, vertices, most)
        here = np.flatnonzero(out.status < 0)
        try:
            found = _stage(task, skeleton)
        finally:
            sound = here[out.status[here] != Status.DEGENERATE]
            out.bound[sound] = np.maximum(out.bound[sound], task.counts[sound].min(axis=1))
        if (task.counts[out.status < 0] != task.counts[out.status < 0, :1]).any():
            raise RuntimeError("two sweeps disagree: signs at the vertices contradict each other")
        left = np.flatnonzero(out.status < 0)
        out.by_stage[left, stage] = task.counts[left, 0]
        out.hits[left, stage] = hits(found, net.stages[stage].unit)[left]
        if not len(left):
            break
        if keep:
            ledger.vertices = ledger.vertices.extended(*task.fresh)
            skeleton = joined(layer, task.found)
    out.status[out.status < 0] = Status.COMPLETE
    return skeleton


def _stage(task: Task, skeleton: Complex) -> np.ndarray:
    """Count one stage; returns the bits of the switching values of either sign, for ``hits``."""
    layer, windows = task.layer, len(task.status)
    live = task.status[skeleton.window] < 0
    skeleton = skeleton if live.all() else skeleton.rows(live)
    signs = evaluate(layer.ledger, skeleton.ids, layer.stage)
    bits = np.zeros((3, windows, signs.positive.shape[1]), np.uint64)
    begin = np.flatnonzero(np.append(True, skeleton.window[1:] != skeleton.window[:-1]))
    for row, words in enumerate((signs.positive, signs.negative)):
        bits[row, skeleton.window[begin]] = np.bitwise_or.reduceat(words, begin, axis=0)
    if len(signs.zero_row):
        signs = _without_zeros(task, skeleton, signs, bits)
    _descend(task, _alive(task, _whole(task, skeleton, signs)))
    return bits


def _without_zeros(task: Task, skeleton: Complex, signs: Signs, bits: np.ndarray) -> Signs:
    """Switching values that vanish at a vertex but cut nothing are made 1 in their window.

    That is: all that do not take both signs there. Enough zeros for a whole cell would be a piece
    of their own, unless nothing else occurs; such windows are degenerate.
    """
    layer, size = task.layer, task.layer.inert.shape[1]
    key, zeros = np.unique(
        skeleton.window[signs.zero_row] * size + signs.zero_entry, return_counts=True
    )
    window, entry = key // size, key % size
    positive, negative = (unpacked(b, size)[window, entry] for b in bits[:2])
    piece = (positive | negative) & (zeros > task.k) & (layer.stage > 0)
    task.status[window[(positive & negative) | piece]] = Status.DEGENERATE
    layer.inert[window, entry] = True
    inert = layer.inert[skeleton.window]
    values, ones = np.where(inert, 1.0, signs.values), packed(inert)
    return signs._replace(
        values=values, positive=signs.positive | ones, negative=signs.negative & ~ones
    )


def _whole(task: Task, skeleton: Complex, signs: Signs) -> Part:
    """The subdivision itself as a part."""
    layer = task.layer
    at, directions = layer.ledger.vertices.rows(skeleton.ids), layer.directions
    heights = at.u @ directions.T
    reach = np.abs(at.u) @ np.abs(directions).max(axis=0)
    wide = np.abs(directions).sum(axis=1).max()
    bound = (at.error * wide + exact.gamma(task.k + 2, np.float64) * reach) * (1 + 8 * U)
    none = np.full(len(skeleton.ids), -1)
    return Part(
        none,
        np.zeros((len(none), 0), np.int64),
        skeleton.window,
        skeleton.window,
        skeleton.key,
        skeleton.planes,
        0,
        signs.values,
        signs.error.copy(),
        heights,
        bound,
        signs.positive,
        signs.negative,
        None,
        none,
        none,
        skeleton.ids,
        at if task.keep else None,
        skeleton.apexes if len(skeleton.apexes.ray) else None,
    )


def _alive(task: Task, part: Part) -> Part:
    """The part without the windows that are no longer counted."""
    live = task.status[part.window] < 0
    return part if live.all() else part.rows(live)


def _descend(task: Task, part: Part) -> None:
    """Count the flats of a part and all flats inside them."""
    depth = part.new.shape[1]
    if not part.size:
        return
    halt = task.stopped()
    if halt is not None:
        task.status[task.status < 0] = halt
        return
    if task.keep:
        _kept(task, part)
    if depth == task.k:
        _tally(task, _per_window(task, part.window, part.apexes))
        return
    edges = edges_of(task.layer.words, task.layer.sides, part)
    cells, level = swept(task.layer, part, edges)
    task.status[level] = Status.DEGENERATE
    _tally(task, cells)
    if depth == task.k - 1 and not task.keep:  # the flats inside are points
        for at, unit in crossed(part, edges, whole=True):
            change = coinciding(task.layer, part, edges, at, unit, task.apexes)
            _tally(task, _per_window(task, part.window[edges.tail[at]]) + change[:, None])
        return
    for at, unit in crossed(part, edges):
        for run in flats(part, edges, at, unit):
            if (task.status >= 0).all():
                return
            more = depth + 1 < task.k - 1
            own = _alive(task, child(task.layer, part, edges, at[run], unit[run], sweep=more))
            own = _unmet(task, own)
            extra, same = settled(task.layer, own)
            _descend(task, _alive(task, _concurrent(task, own, extra, same) if len(extra) else own))


def _unmet(task: Task, part: Part) -> Part:
    """The part without the points that are apexes which are known already."""
    if part.planes.shape[1] or not task.apexes:
        return part
    met = np.zeros(part.size, bool)
    for window, known in task.apexes.items():
        for through in known:
            met |= (part.window == window) & np.isin(part.new, through).all(axis=1)
    return part.rows(~met)


def _concurrent(task: Task, part: Part, extra: np.ndarray, same: np.ndarray) -> Part:
    """The part with one vertex for each point that it has several times.

    Args:
      extra, same: of ``settled``.
    """
    layer, size = task.layer, task.layer.inert.shape[1]
    if part.new.shape[1] < task.k or layer.stage > 0:
        task.status[part.window[extra]] = Status.DEGENERATE
        return part
    weight, keys, keep = np.zeros(part.size, np.int64), [], ~same
    for row in extra.tolist():
        known = exact_row(layer, part, row)
        through = [u for u in range(size) if known[u] == 0]
        keep[row] = through[: task.k] == part.new[row].tolist()
        if keep[row]:
            window, own = int(part.window[row]), None
            if window not in task.apexes and comb(len(through), task.k) <= MOST:
                own = rays(layer, part, row, through)
            if own is None:
                task.status[window] = Status.DEGENERATE
                continue
            task.apexes[window] = [through]
            weight[row] = added(len(through), task.k)
            keys.append(own)
    row = np.repeat(np.flatnonzero(weight), [len(k) for k in keys])
    part.apexes = Apexes(weight, row, np.concatenate([np.zeros(0, np.uint64), *keys]))
    return part.rows(keep)


def _per_window(task: Task, window: np.ndarray, apexes: Apexes | None = None) -> np.ndarray:
    """(W, 1) points, or what they add where some are apexes."""
    points = np.bincount(window, minlength=len(task.status))
    if apexes is not None:
        at = np.flatnonzero(apexes.weight)
        np.add.at(points, window[at], apexes.weight[at] - 1)
    return points[:, None]


def _tally(task: Task, counts: np.ndarray) -> None:
    task.counts += counts
    over = (task.status < 0) & (task.counts.min(axis=1) > task.over)
    task.status[over] = Status.MAX_REGIONS
    if task.watch is not None:
        task.watch(int(task.counts[:, 0].sum()))


def _kept(task: Task, part: Part) -> None:
    """Keep the part for the next subdivision; its vertices, if new, for the ledger."""
    if part.ids is None and part.at is not None:
        part.ids = task.numbers + np.arange(part.size)
        task.numbers += part.size
        task.fresh.append(part.at)
    light = {"values": part.values[:, :0], "heights": None, "parent": None, "at": None}
    task.found.append(dataclasses.replace(part, **light, known={}))
    task.held += part.size
    if task.held > task.most:
        raise _Large

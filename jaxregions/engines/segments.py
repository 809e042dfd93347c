"""Exact partitions of 1-d windows: the breakpoints along every segment, refined stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxregions.engines.edges import Zeros, ragged, starts_of, zeros_on
from jaxregions.engines.points import CORNER, Ledger, U, between
from jaxregions.engines.records import Cells, Cuts
from jaxregions.engines.signs import Signs

__all__ = ["Line", "begin", "cells", "counted", "middles", "refined", "restricted"]


class Line(NamedTuple):
    """Intervals of many segments, in order along each.

    vertices: (V,) numbers of the ledger's vertices, segment after segment, from end to end.
    stage, entry: (V,) a switching value that vanishes there; CORNER at the ends.
    window, parent: (F,) per interval its segment and the interval of the stage before around it.
    tail: (F,) the row of the vertex that it begins at; it ends at the next.
    """

    vertices: np.ndarray
    stage: np.ndarray
    entry: np.ndarray
    window: np.ndarray
    parent: np.ndarray
    tail: np.ndarray

    @property
    def faces(self) -> int:
        return len(self.window)

    @property
    def size(self) -> int:
        return len(self.vertices)


def begin(windows: int) -> Line:
    """The segments themselves, on the vertices of ``corners``."""
    each, both = np.arange(windows), np.arange(2 * windows)
    border = np.full(2 * windows, CORNER)
    return Line(both, border, border, each, each, both[::2])


def restricted(line: Line, low: int, high: int) -> Line:
    """Intervals low .. high - 1, whole segments, as a record of their own."""
    a, b = line.tail[low], line.tail[high - 1] + 2
    part = slice(a, b)
    return Line(
        line.vertices[part],
        line.stage[part],
        line.entry[part],
        line.window[low:high],
        line.parent[low:high],
        line.tail[low:high] - a,
    )


def refined(
    ledger: Ledger,
    line: Line,
    stage: int,
    signs: Signs,
    meet: Callable[[np.ndarray], None] | None = None,
) -> tuple[Line, Cuts]:
    """The intervals cut by a stage; its breakpoints are added to the ledger's vertices.

    Args:
      signs: of the stage, at the vertices of the line.
      meet: receives the vertices of the new line.
    """
    zeros = zeros_on(ledger, signs, stage, line.tail, line.tail + 1)
    at = zeros.edge[zeros.first]
    fresh = between(
        ledger.vertices,
        line.vertices[line.tail[at]],
        line.vertices[line.tail[at] + 1],
        zeros.t[zeros.first],
        zeros.error[zeros.first],
        stage,
        zeros.entry[zeros.first],
        np.full(len(at), CORNER),
    )
    numbers = ledger.vertices.size + np.arange(fresh.size)
    ledger.vertices = ledger.vertices.extended(fresh)
    after = line.tail[at] + 1  # new ones go before these rows
    parent = np.repeat(np.arange(line.faces), zeros.per_edge + 1)
    rank = np.arange(len(parent)) - starts_of(zeros.per_edge + 1)[parent]
    before = starts_of(zeros.per_edge)[parent]
    new = Line(
        np.insert(line.vertices, after, numbers),
        np.insert(line.stage, after, stage),
        np.insert(line.entry, after, zeros.entry[zeros.first]),
        line.window[parent],
        parent,
        line.tail[parent] + before + rank,
    )
    if meet is not None:
        meet(new.vertices)
    return new, _cuts(line, signs, zeros)


def counted(ledger: Ledger, line: Line, stage: int, signs: Signs) -> Cuts:
    """How many intervals a stage makes of each."""
    return _cuts(line, signs, zeros_on(ledger, signs, stage, line.tail, line.tail + 1))


def _cuts(line: Line, signs: Signs, zeros: Zeros) -> Cuts:
    ends = np.stack([line.tail, line.tail + 1], axis=1).ravel()
    owner = np.repeat(np.arange(line.faces), 2)
    at_zero = np.argsort(signs.zero_row, kind="stable")
    rows = signs.zero_row[at_zero]
    low, high = np.searchsorted(rows, ends), np.searchsorted(rows, ends, side="right")
    corner, place = ragged(high - low)
    return Cuts(
        zeros.edge,
        zeros.entry,
        zeros.entry[zeros.first][zeros.node],
        line.window,
        1 + zeros.per_edge,
        signs,
        line.window[owner],
        ends,
        owner[corner],
        signs.zero_entry[at_zero[low[corner] + place]],
        np.full(line.faces, 2),
    )


def middles(ledger: Ledger, line: Line) -> np.ndarray:
    """(F, 1) the middle of every interval, in float64."""
    low, high = (ledger.vertices.u[line.vertices[line.tail + i]] for i in range(2))
    return low + (high - low) / 2


def cells(ledger: Ledger, line: Line, witness: np.ndarray) -> Cells:
    """Intervals with witness points, their ``middles``, and the breakpoints between them."""
    u, error = ledger.vertices.u[line.vertices], ledger.vertices.error[line.vertices]
    low, high = line.tail, line.tail + 1
    gap = np.minimum(witness - u[low], u[high] - witness)[:, 0]
    inside = gap * (1 - 4 * U) > 2 * np.maximum(error[low], error[high])
    left = np.flatnonzero(line.window[1:] == line.window[:-1])
    shared = line.tail[left] + 1
    return Cells(
        line.window,
        line.parent,
        witness,
        inside,
        (u[high] - u[low])[:, 0],
        2 * np.arange(line.faces + 1),
        line.vertices[np.stack([low, high], axis=1).ravel()],
        left,
        left + 1,
        line.vertices[shared][:, None],
        line.stage[shared],
        line.entry[shared],
    )

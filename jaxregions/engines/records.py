"""What every engine hands on: which units cut which cells, and cells with facets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxregions.engines.signs import Signs

__all__ = ["Cells", "Cuts", "hits", "sign_bits"]


class Cuts(NamedTuple):
    """What one stage does to cells.

    cut_cell, cut_entry: (C,) a switching value that takes both signs inside a cell. cut_line: (C,)
      the first of those that vanish together with it there; facets bear its name.
    cell_window, children: (F,) the window of each cell, and how many cells it falls into.
    corner_window, corner_row: (H,) window and row of ``signs`` of every corner of every cell,
      in order of window.
    zero_cell, zero_entry: (Z,) corners of cells where a switching value vanishes.
    corners: (F,) number of corners of each cell.
    pieces: of chords, where a planar mesh was cut, as in ``split``.
    """

    cut_cell: np.ndarray
    cut_entry: np.ndarray
    cut_line: np.ndarray
    cell_window: np.ndarray
    children: np.ndarray
    signs: Signs
    corner_window: np.ndarray
    corner_row: np.ndarray
    zero_cell: np.ndarray
    zero_entry: np.ndarray
    corners: np.ndarray
    pieces: Any = None


class Cells(NamedTuple):
    """A finished partition: convex cells and the facets between them.

    window, parent: (F,). witness: (F, k) slice coordinates of a point of each cell; ``inside`` (F,)
    says whether that is proven for the float64 point. size: (F,) length or area, else NaN.
    start, corner: (F + 1,), (H,) the vertices of each cell (ledger numbers), counter-clockwise.
    left, right: (G,) the cells on both sides of each facet; facet: (G, k) its vertices.
    stage, entry: (G,) a switching value that vanishes on it.
    """

    window: np.ndarray
    parent: np.ndarray
    witness: np.ndarray
    inside: np.ndarray
    size: np.ndarray
    start: np.ndarray
    corner: np.ndarray
    left: np.ndarray
    right: np.ndarray
    facet: np.ndarray
    stage: np.ndarray
    entry: np.ndarray


def sign_bits(cuts: Cuts, windows: int) -> np.ndarray:
    """(3, windows, words) bits of the switching values that are somewhere positive, somewhere
    negative, and zero on a whole cell of each window. Combine parts of a window with ``|``."""
    signs, size = cuts.signs, cuts.signs.values.shape[1]
    bits = np.zeros((3, windows, signs.positive.shape[1]), np.uint64)
    new = np.append(True, cuts.corner_window[1:] != cuts.corner_window[:-1])
    first = np.flatnonzero(new)
    here = cuts.corner_window[first]
    for row, packed in enumerate((signs.positive, signs.negative)):
        bits[row, here] = np.bitwise_or.reduceat(packed[cuts.corner_row], first, axis=0)
    if len(cuts.zero_cell):
        key, count = np.unique(cuts.zero_cell * size + cuts.zero_entry, return_counts=True)
        key = key[count == cuts.corners[key // size]]
        entry = key % size
        mask = np.uint64(1) << (entry % 64).astype(np.uint64)
        np.bitwise_or.at(bits[2], (cuts.cell_window[key // size], entry // 64), mask)
    return bits


def hits(bits: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """(windows,) units whose piece changes across some facet inside each window.

    A continuous switching value that is positive here and negative there changes across a facet
    between; so does one that vanishes on a whole cell only.
    """
    positive, negative, flat = bits
    words = (positive & negative) | (flat & (positive | negative))
    dense = np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, bitorder="little")
    window, entry = np.nonzero(dense)
    seen = np.zeros((len(words), int(unit.max(initial=-1)) + 1), bool)
    seen[window, unit.take(entry)] = True
    return seen.sum(axis=1)

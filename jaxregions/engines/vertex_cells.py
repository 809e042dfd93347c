"""A point inside every cell of subdivisions that are known by their vertices.

A cell's edges at one of its simple vertices span a cone that contains the cell, so the mean of the
vertex and of the other ends of these k edges lies strictly inside. Cells and edges are found by the
hashes of their names; as many cells as were counted means that no two had the same.
"""

from __future__ import annotations

import numpy as np

from jaxregions.engines.complexes import Complex, Tables, cells_around, tables
from jaxregions.engines.points import CORNER, Ledger, U, Vertices, point, widest
from jaxregions.engines.signs import patterns
from jaxregions.engines.skeleton import edges_of

__all__ = ["vertex_patterns"]


def vertex_patterns(ledger: Ledger, skeleton: Complex) -> tuple[np.ndarray, list[np.ndarray]]:
    """(F,) the window of every cell, and per stage the exact signs (F, size) int8 on it.

    Args:
      ledger, skeleton: of the last subdivision of windows that are not degenerate.
    """
    k, stages = skeleton.planes.shape[1], ledger.net.stages
    corner = skeleton.ids[_simplices(tables(2 * k + sum(s.size for s in stages)), skeleton)]
    every = ledger.vertices
    u = every.u[corner]
    error = every.error[corner].max(axis=1)
    size = widest(u.reshape(-1, k)).reshape(corner.shape).max(axis=1)
    error = (error + (k + 3) * 2 * U * size) * (1 + 8 * U)
    window, none = every.window[corner[:, 0]], np.full(len(corner), CORNER)
    at = Vertices(u.mean(axis=1), error, window, none, none, none, none, none)
    inner = Ledger(ledger.net, ledger.windows, at)

    def exactly(cell: int) -> np.ndarray:
        own = corner[cell].tolist()
        return sum((point(ledger, c) for c in own[1:]), start=point(ledger, own[0])) / len(own)

    return window, patterns(inner, len(stages), exactly)


def _simplices(words: Tables, skeleton: Complex) -> np.ndarray:
    """(F, k + 1) rows of a vertex of every cell, and of the other ends of its k edges there."""
    sides = 2 * skeleton.planes.shape[1]
    vertex, key, above = cells_around(words, skeleton)
    order = np.argsort(key)
    key = key[order]
    first = order[np.append(True, key[1:] != key[:-1])]
    vertex, above = vertex[first], above[first]
    edges = edges_of(words, sides, skeleton)
    order = np.argsort(edges.key)
    names, both = edges.key[order], (edges.tail + edges.head)[order]
    corner = [vertex]
    for plane, up in zip(skeleton.planes[vertex].T, above.T, strict=True):
        edge = skeleton.key[vertex] ^ words.zero[plane]
        edge ^= np.where(up, words.plus[plane], words.minus[plane])
        place = np.searchsorted(names, edge).clip(max=len(names) - 1)
        if (names[place] != edge).any():
            raise RuntimeError("the skeleton contradicts itself: a cell without an edge")
        corner.append(both[place] - vertex)
    return np.stack(corner, axis=1)

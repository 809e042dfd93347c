"""A planar subdivision of many windows at once, as half-edges stored face after face."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions.engines.edges import starts_of
from jaxregions.engines.points import CORNER

__all__ = ["Mesh", "boxes", "edges_of", "from_cycles", "restricted"]


class Mesh(NamedTuple):
    """Convex faces, counter-clockwise.

    vertices: (V,) numbers of the ledger's vertices; everything below counts these rows.
    start: (F + 1,) where the half-edges of each face begin.
    window, parent: (F,) the face of the stage before that it lies in.
    origin, twin, face, following: (H,) per half-edge the vertex it leaves, the half-edge of the
      face on the other side (-1 at the window's border), its own face, the next one around it.
    stage, entry: (H,) a switching value that vanishes on it; CORNER at the window's border.
    """

    vertices: np.ndarray
    start: np.ndarray
    window: np.ndarray
    parent: np.ndarray
    origin: np.ndarray
    twin: np.ndarray
    face: np.ndarray
    following: np.ndarray
    stage: np.ndarray
    entry: np.ndarray

    @property
    def faces(self) -> int:
        return len(self.window)

    @property
    def size(self) -> int:
        return len(self.vertices)


def _around(start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(face, following) of half-edges stored face after face."""
    counts = np.diff(start)
    following = np.arange(1, start[-1] + 1)
    following[start[1:] - 1] = start[:-1]
    return np.repeat(np.arange(len(counts)), counts), following


def boxes(windows: int) -> Mesh:
    """One face a window, on the vertices of ``corners``."""
    half = np.arange(4 * windows)
    start = np.arange(0, 4 * windows + 1, 4)
    border = np.full(len(half), CORNER)
    each = np.arange(windows)
    face, following = _around(start)
    return Mesh(half, start, each, each, half, border, face, following, border, border)


def edges_of(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(half, twin) per edge, and (edge, whether along it) per half-edge."""
    index = np.arange(len(mesh.origin))
    forward = (mesh.twin < 0) | (index < mesh.twin)
    half = np.flatnonzero(forward)
    edge = np.empty(len(index), np.int64)
    edge[half] = np.arange(len(half))
    edge[~forward] = edge[mesh.twin[~forward]]
    return half, mesh.twin[half], edge, forward


def restricted(mesh: Mesh, low: int, high: int) -> Mesh:
    """Faces low .. high - 1 as a mesh of their own."""
    a, b = int(mesh.start[low]), int(mesh.start[high])
    used, origin = np.unique(mesh.origin[a:b], return_inverse=True)
    twin = mesh.twin[a:b] - a
    twin[(twin < 0) | (twin >= b - a)] = -1
    start = mesh.start[low : high + 1] - a
    face, following = _around(start)
    return Mesh(
        mesh.vertices[used],
        start,
        mesh.window[low:high],
        mesh.parent[low:high],
        origin,
        twin,
        face,
        following,
        mesh.stage[a:b],
        mesh.entry[a:b],
    )


def from_cycles(
    vertices: np.ndarray,
    following: np.ndarray,
    old_face: np.ndarray,
    window: np.ndarray,
    columns: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> Mesh:
    """The mesh whose faces are the cycles of ``following``, parent after parent.

    Args:
      following: (H,) a permutation. old_face: (H,) the parent. window: of the parents.
      columns: origin, twin, stage, entry of every half-edge.
    """
    label = _cycle_labels(following)
    heads, sizes = np.unique(label, return_counts=True)
    order = np.argsort(old_face[heads], kind="stable")
    heads, sizes = heads[order], sizes[order]
    start = starts_of(sizes)
    place = np.empty(len(following), np.int64)
    here, to, left = heads, start[:-1], sizes
    while len(here):
        place[here] = to
        more = np.flatnonzero(left > 1)
        here, to, left = following[here[more]], to[more] + 1, left[more] - 1
    old = np.empty_like(place)
    old[place] = np.arange(len(place))
    origin, twin, stage, entry = (c[old] for c in columns)
    twin = np.where(twin >= 0, place[twin], -1)
    parent = old_face[heads]
    face, around = _around(start)
    return Mesh(vertices, start, window[parent], parent, origin, twin, face, around, stage, entry)


def _cycle_labels(following: np.ndarray) -> np.ndarray:
    """The smallest member of each member's cycle, by doubling."""
    label, jump = np.arange(len(following)), following
    while True:
        label = np.minimum(label, label[jump])
        if (label[following] == label).all():
            return label
        jump = jump[jump]

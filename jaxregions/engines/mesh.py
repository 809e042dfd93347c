"""A planar subdivision of many windows at once, as half-edges stored face after face."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions.engines.edges import starts_of
from jaxregions.engines.points import CORNER

__all__ = ["Edges", "Mesh", "boxes", "edges_of", "from_cycles", "restricted"]


class Mesh(NamedTuple):
    """Convex faces, counter-clockwise.

    vertices: (V,) numbers of the ledger's vertices; everything below counts these rows.
    start: (F + 1,) where the half-edges of each face begin.
    window, parent: (F,) the face of the stage before that it lies in.
    origin, twin, face, following: (H,) per half-edge the vertex it leaves, the half-edge of the
      face on the other side (-1 at the window's border), its own face, the next one around it.
    line: (H,) a switching value that vanishes on it, numbered through all stages; CORNER at the
      window's border.
    """

    vertices: np.ndarray
    start: np.ndarray
    window: np.ndarray
    parent: np.ndarray
    origin: np.ndarray
    twin: np.ndarray
    face: np.ndarray
    following: np.ndarray
    line: np.ndarray

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
    return Mesh(half, start, each, each, half, border, face, following, border)


class Edges(NamedTuple):
    """half, twin: (E,) the half-edge that an edge is seen from, and its twin (-1: none).

    edge: (H,) that of every half-edge. tail, head: (E,) its ends, rows of the mesh's vertices.
    """

    half: np.ndarray
    twin: np.ndarray
    edge: np.ndarray
    tail: np.ndarray
    head: np.ndarray


def edges_of(mesh: Mesh) -> Edges:
    index = np.arange(len(mesh.origin))
    forward = (mesh.twin < 0) | (index < mesh.twin)
    half = np.flatnonzero(forward)
    edge = np.empty(len(index), np.int64)
    edge[half] = np.arange(len(half))
    back = np.flatnonzero(~forward)
    edge[back] = edge.take(mesh.twin.take(back))
    tail, head = mesh.origin.take(half), mesh.origin.take(mesh.following.take(half))
    return Edges(half, mesh.twin.take(half), edge, tail, head)


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
        mesh.line[a:b],
    )


def from_cycles(
    vertices: np.ndarray,
    following: np.ndarray,
    heads: np.ndarray,
    parent: np.ndarray,
    window: np.ndarray,
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[Mesh, np.ndarray]:
    """The mesh whose faces are the cycles of ``following``, and (H,) where its half-edges are now.

    Args:
      following: (H,) a permutation. heads: (F,) one half-edge of each cycle, parent after parent.
      parent: (F,) the faces that they lie in. window: of the parents.
      columns: origin, twin, line of every half-edge.

    Raises:
      RuntimeError: heads that are not one of each cycle.
    """
    here, face, head = heads, np.arange(len(heads)), np.zeros(len(following), bool)
    head[heads] = True
    walked, owners, size = [], [], 0
    while len(here) and size <= len(following):
        walked.append(here)
        owners.append(face)
        size += len(here)
        here = following.take(here)
        more = np.flatnonzero(~head.take(here))
        here, face = here.take(more), face.take(more)
    if size != len(following):
        raise RuntimeError("the turns at the vertices contradict each other")
    half, owner = np.concatenate(walked), np.concatenate(owners)
    rank = np.repeat(np.arange(len(walked)), list(map(len, walked)))
    start = starts_of(np.bincount(owner, minlength=len(heads)))
    at = start.take(owner) + rank
    old, place = np.empty((2, size), np.int64)
    old[at], place[half] = half, at
    again = following.take(old.take(start[1:] - 1)) != heads
    if again.any() or np.count_nonzero(head) < len(heads):
        raise RuntimeError("two heads of one cycle")
    origin, twin, line = (c.take(old) for c in columns)
    border = twin < 0
    twin = place.take(twin)
    twin[border] = -1
    face, around = _around(start)
    window = window.take(parent)
    return Mesh(vertices, start, window, parent, origin, twin, face, around, line), place

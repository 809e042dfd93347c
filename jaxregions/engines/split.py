"""The mesh refined by a stage's chords: new vertices, new half-edges, new faces.

Around a node the half-edges that leave it are ordered by where on the face's boundary they lead:
that is their order by angle, so no angle is ever computed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions.engines.chords import Boundary, Chords, Crossings
from jaxregions.engines.edges import Zeros, starts_of
from jaxregions.engines.mesh import Mesh, from_cycles
from jaxregions.engines.points import Ledger, Vertices, between, numbered
from jaxregions.engines.signs import Signs

__all__ = ["Pieces", "new_vertices", "split"]


class Pieces(NamedTuple):
    """Pieces of chords: the new faces on their inner and their outer side, and the chords' entry.

    Going outwards leads from every face to the first one of its parent.
    """

    inner: np.ndarray
    outer: np.ndarray
    entry: np.ndarray


def new_vertices(
    ledger: Ledger,
    mesh: Mesh,
    signs: Signs,
    stage: int,
    half: np.ndarray,
    zeros: Zeros,
    rim: Boundary,
    chords: Chords,
    cross: Crossings,
) -> Vertices:
    """New vertices for the ledger: the zeros on edges (one half-edge each), then the crossings."""
    tail = mesh.vertices[mesh.origin[half]]
    head = mesh.vertices[mesh.origin[mesh.following[half]]]
    at = zeros.edge[zeros.first]
    on_edges = between(
        ledger.vertices,
        tail[at],
        head[at],
        zeros.t[zeros.first],
        zeros.error[zeros.first],
        stage,
        zeros.entry[zeros.first],
        numbered(ledger.net, mesh.stage[half[at]], mesh.entry[half[at]]),
    )
    grown = ledger.vertices.extended(on_edges)
    node = np.concatenate([signs.ids, ledger.vertices.size + np.arange(on_edges.size)])[rim.node]
    inside = between(
        grown,
        node[chords.first[cross.on]],
        node[chords.last[cross.on]],
        cross.t,
        cross.error,
        stage,
        chords.entry[cross.other],
        numbered(ledger.net, np.full(len(cross.on), stage), chords.entry[cross.on]),
    )
    return on_edges.extended(inside)


def split(
    mesh: Mesh,
    edge_of: np.ndarray,
    zeros: Zeros,
    rim: Boundary,
    chords: Chords,
    cross: Crossings,
    stage: int,
    vertices: np.ndarray,
) -> tuple[Mesh, Pieces]:
    """The faces of ``mesh`` cut by all chords; ``vertices`` are the old and the new ones."""
    rims, nodes = len(rim.face), mesh.size + len(zeros.first)
    # Half-edges: one per boundary position, then two (forward, backward) per piece of a chord.
    inner = np.bincount(cross.chord, minlength=len(chords.first))
    pieces = inner + 1
    begin = starts_of(pieces)
    chord = np.repeat(np.arange(len(pieces)), pieces)
    # Nodes along every chord: first end, crossings in order, last end.
    along = starts_of(pieces + 1)
    walk = np.empty(along[-1], np.int64)
    walk[along[:-1]], walk[along[1:] - 1] = rim.node[chords.first], rim.node[chords.last]
    rank = np.arange(len(cross.chord)) - starts_of(inner)[cross.chord]
    walk[along[cross.chord] + 1 + rank] = nodes + cross.point
    piece = np.arange(len(chord))
    low = piece + chord  # position of the piece's first node in ``walk``
    ahead, back = rims + 2 * piece, rims + 2 * piece + 1

    origin = np.concatenate([rim.node, np.empty(2 * len(piece), np.int64)])
    origin[ahead], origin[back] = walk[low], walk[low + 1]
    twin = np.concatenate([_boundary_twins(mesh, rim), np.empty(2 * len(piece), np.int64)])
    twin[ahead], twin[back] = back, ahead
    inherits = np.repeat(np.arange(len(rim.corner)), zeros.per_edge[edge_of] + 1)
    own_stage = np.concatenate([mesh.stage[inherits], np.full(2 * len(piece), stage)])
    own_entry = np.concatenate([mesh.entry[inherits], np.repeat(chords.entry[chord], 2)])

    following = np.empty(len(origin), np.int64)
    _turn_at_boundary(following, mesh, rim, chords, rims, begin)
    _turn_inside(following, rims, chords, cross, begin, rank)
    heads, parent = _heads(following, mesh, rim, chords.face.take(chord))
    new, face = from_cycles(
        vertices, following, heads, parent, mesh.window, (origin, twin, own_stage, own_entry)
    )
    return new, Pieces(face.take(back), face.take(ahead), chords.entry.take(chord))


def _heads(following, mesh, rim, face) -> tuple[np.ndarray, np.ndarray]:
    """(F,) one half-edge of every new face, and the parent; a parent's outermost face comes first.

    A chord has the parent's last boundary piece on its outer side. The outermost face, of that
    piece, is on the outer side of all; of any other one the chords on whose inner side it is are
    those that a point of the outermost sees of it: a part of its boundary without a gap.

    Args:
      face: (P,) the parent of every piece of a chord.
    """
    rims, parents = len(rim.face), mesh.faces
    before = np.concatenate([np.arange(rims), rims + 2 * np.arange(len(face))])  # not inner sides
    after = following.take(before) - rims
    first = np.zeros(len(face), bool)
    first[after[(after >= 0) & (after & 1 == 1)] >> 1] = True
    piece = np.flatnonzero(first)
    inner = face.take(piece)
    at = inner + np.arange(1, len(piece) + 1)
    outermost = starts_of(1 + np.bincount(inner, minlength=parents))[:-1]
    heads, parent = np.empty((2, parents + len(piece)), np.int64)
    heads[at], parent[at] = rims + 2 * piece + 1, inner
    heads[outermost] = np.append(rim.corner.take(mesh.start[1:-1]), rims) - 1
    parent[outermost] = np.arange(parents)
    return heads, parent


def _boundary_twins(mesh: Mesh, rim: Boundary) -> np.ndarray:
    """Of the boundary piece that begins at each position: the j-th from the other end."""
    size = len(rim.face)
    stop = np.append(rim.corner[1:], size)
    half = np.repeat(np.arange(len(rim.corner)), stop - rim.corner)
    place = np.arange(size) - rim.corner[half]
    other = mesh.twin[half]
    twins = stop.take(other) - 1 - place
    twins[other < 0] = -1
    return twins


def _turn_at_boundary(following, mesh, rim, chords, rims, begin) -> None:
    """After arriving at a position, leave by the ray next to the right of the way back."""
    start = rim.corner[mesh.start[:-1]]
    stop = np.append(start[1:], len(rim.face))
    before = np.arange(len(rim.face)) - 1
    before[start] = stop - 1
    following[before] = np.arange(len(rim.face))  # where no chord ends
    if not len(chords.first):
        return
    length = (stop - start)[chords.face]
    position = np.concatenate([chords.first, chords.last])
    span = chords.last - chords.first
    reach = np.concatenate([span, length - span])
    out = np.concatenate([rims + 2 * begin[:-1], rims + 2 * (begin[1:] - 1) + 1])
    order = np.argsort(position * len(rim.face) + reach)
    position, out = position[order], out[order]
    begins = np.ones(len(out), bool)
    begins[1:] = position[1:] != position[:-1]
    ends = np.append(begins[1:], True)
    right = np.where(begins, position, np.roll(out, 1))
    following[_reverse(out, rims)] = right
    following[before[position[ends]]] = out[ends]


def _turn_inside(following, rims, chords, cross, begin, rank) -> None:
    """The same at crossings, where the rays are ordered by the ends they lead to."""
    if not len(cross.chord):
        return
    toward_first = rims + 2 * (begin[cross.chord] + rank) + 1
    toward_last = rims + 2 * (begin[cross.chord] + rank + 1)
    out = np.concatenate([toward_first, toward_last])
    node = np.concatenate([cross.point, cross.point])
    leads_to = np.concatenate([chords.first[cross.chord], chords.last[cross.chord]])
    order = np.argsort(node * rims + leads_to)
    out, node = out[order], node[order]
    begins = np.ones(len(out), bool)
    begins[1:] = node[1:] != node[:-1]
    last = np.append(np.flatnonzero(begins)[1:], len(out)) - 1
    right = np.roll(out, 1)
    right[begins] = out[last]
    following[_reverse(out, rims)] = right


def _reverse(half, rims):
    """The other direction of pieces of chords."""
    return rims + ((half - rims) ^ 1)

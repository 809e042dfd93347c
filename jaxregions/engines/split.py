"""The mesh refined by a stage's chords: new vertices, new half-edges, new faces.

Around a node the half-edges that leave it are ordered by where on the face's boundary they lead:
that is their order by angle, so no angle is ever computed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions.engines.chords import Boundary, Chords, Crossings, two_by_two
from jaxregions.engines.edges import Zeros, starts_of
from jaxregions.engines.mesh import Edges, Mesh, from_cycles
from jaxregions.engines.points import Ledger, Vertices, between, numbered

__all__ = ["Pieces", "split", "with_new_vertices"]


class Pieces(NamedTuple):
    """Pieces of chords: the new faces on their inner and their outer side, and the chords' entry.

    Going outwards leads from every face to the first one of its parent.
    """

    inner: np.ndarray
    outer: np.ndarray
    entry: np.ndarray


def with_new_vertices(
    ledger: Ledger,
    mesh: Mesh,
    stage: int,
    edges: Edges,
    zeros: Zeros,
    rim: Boundary,
    chords: Chords,
    cross: Crossings,
) -> Vertices:
    """The ledger's vertices and the new ones: points on edges, then crossings."""
    ids, old = mesh.vertices, ledger.vertices
    edge, half = zeros.edge.take(zeros.first), rim.half.take(rim.along)
    on_edges = between(
        old,
        ids.take(edges.tail.take(edge)),
        ids.take(edges.head.take(edge)),
        zeros.t.take(zeros.first),
        zeros.error.take(zeros.first),
        stage,
        zeros.entry.take(zeros.first),
        mesh.line.take(half),
    )
    grown = old.extended(on_edges)
    nodes = np.concatenate([ids, np.arange(old.size, grown.size)])
    first, last = (rim.node.take(c.take(cross.on)) for c in (chords.first, chords.last))
    inside = between(
        grown,
        nodes.take(first),
        nodes.take(last),
        cross.t,
        cross.error,
        stage,
        chords.entry.take(cross.other),
        numbered(ledger.net, stage, chords.entry.take(cross.on)),
    )
    return grown.extended(inside)


def split(
    mesh: Mesh,
    rim: Boundary,
    chords: Chords,
    cross: Crossings,
    first: int,
    vertices: np.ndarray,
) -> tuple[Mesh, Pieces]:
    """The faces of ``mesh`` cut by all chords of a stage.

    Args:
      first: the number of the stage's first switching value. vertices: the old and the new ones.
    """
    rims, nodes = len(rim.node), len(rim.tail)
    # Half-edges: one per boundary position, then two (forward, backward) per piece of a chord.
    crossings = np.bincount(cross.chord, minlength=len(chords.first))
    pieces = crossings + 1
    begin = starts_of(pieces)
    chord = np.repeat(np.arange(len(pieces)), pieces)
    # Nodes along every chord: first end, crossings in order, last end.
    along = starts_of(pieces + 1)
    walk = np.empty(along[-1], np.int64)
    ends = rim.node.take(chords.first), rim.node.take(chords.last)
    walk[along[:-1]], walk[along[1:] - 1] = ends
    rank = np.arange(len(cross.chord)) - starts_of(crossings)[cross.chord]
    walk[along[cross.chord] + 1 + rank] = nodes + cross.point
    piece = np.arange(len(chord))
    low = piece + chord  # position of the piece's first node in ``walk``
    ahead, back = rims + 2 * piece, rims + 2 * piece + 1

    def columns(of_rim, of_ahead, of_back):
        both = np.empty((len(piece), 2), np.int64)
        both[:, 0], both[:, 1] = of_ahead, of_back
        return np.concatenate([of_rim, both.ravel()])

    entry = chords.entry.take(chord)
    origin = columns(rim.node, walk.take(low), walk.take(low + 1))
    twin = columns(rim.twin, back, ahead)
    line = columns(mesh.line.take(rim.half), first + entry, first + entry)

    following = np.empty(len(origin), np.int64)
    _turn_at_boundary(following, mesh, rim, chords, rims, begin)
    _turn_inside(following, rims, chords, cross, begin, rank)
    heads, parent = _heads(following, mesh, rim, chords.face.take(chord))
    new, place = from_cycles(vertices, following, heads, parent, mesh.window, (origin, twin, line))
    outer, inner = new.face.take(place[rims:]).reshape(-1, 2).T
    return new, Pieces(inner, outer, entry)


def _heads(following, mesh, rim, face) -> tuple[np.ndarray, np.ndarray]:
    """(F,) one half-edge of every new face, and the parent; a parent's outermost face comes first.

    A chord has the parent's last boundary piece on its outer side. The outermost face, of that
    piece, is on the outer side of all; of any other one the chords on whose inner side it is are
    those that a point of the outermost sees of it: a part of its boundary without a gap.

    Args:
      face: (P,) the parent of every piece of a chord.
    """
    rims, parents = len(rim.node), mesh.faces
    first = np.zeros(len(following), bool)  # behind no inner side of a chord
    first[following[:rims]] = first[following[rims::2]] = True
    piece = np.flatnonzero(first[rims + 1 :: 2])
    inner = face.take(piece)
    at = inner + np.arange(1, len(piece) + 1)
    outermost = starts_of(1 + np.bincount(inner, minlength=parents))[:-1]
    heads, parent = np.empty((2, parents + len(piece)), np.int64)
    heads[at], parent[at] = rims + 2 * piece + 1, inner
    heads[outermost] = np.append(rim.corner.take(mesh.start[1:-1]), rims) - 1
    parent[outermost] = np.arange(parents)
    return heads, parent


def _turn_at_boundary(following, mesh, rim, chords, rims, begin) -> None:
    """After arriving at a position, leave by the ray next to the right of the way back."""
    start = rim.corner.take(mesh.start[:-1])
    stop = np.append(start[1:], rims)
    following[:rims] = np.arange(1, rims + 1)  # where no chord ends
    following[stop - 1] = start
    start, stop = start.take(chords.face), stop.take(chords.face)
    before = np.concatenate([np.where(chords.first == start, stop, chords.first), chords.last]) - 1
    position = np.concatenate([chords.first, chords.last])
    out = np.concatenate([rims + 2 * begin[:-1], rims + 2 * begin[1:] - 1])
    taken = np.zeros(rims, bool)
    taken[position] = True
    if np.count_nonzero(taken) == len(position):
        right = position
        following[before] = out
    else:  # some have several rays
        span = chords.last - chords.first
        order = np.argsort(position * rims + np.concatenate([span, stop - start - span]))
        position, before, out = (v.take(order) for v in (position, before, out))
        begins = np.append(True, position[1:] != position[:-1])
        right = np.where(begins, position, np.roll(out, 1))
        final = np.flatnonzero(np.append(begins[1:], True))
        following[before[final]] = out[final]
    following[_reverse(out, rims)] = right


def _turn_inside(following, rims, chords, cross, begin, rank) -> None:
    """The same at crossings, where the rays are ordered by the ends they lead to."""
    low = begin.take(cross.chord) + rank
    out = np.concatenate([rims + 2 * low + 1, rims + 2 * low + 2])  # to the first end, to the last
    if len(out) == 4 * len(cross.on):  # two chords cross everywhere: first, first, last, last
        pair = two_by_two(cross.point)
        out = out.take(np.concatenate([pair, len(low) + pair], axis=1))
        following[_reverse(out, rims)] = np.roll(out, 1, axis=1)
        return
    node = np.concatenate([cross.point, cross.point])
    ends = np.concatenate([chords.first.take(cross.chord), chords.last.take(cross.chord)])
    order = np.argsort(node * rims + ends)
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

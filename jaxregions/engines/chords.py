"""The chords that a stage's units cut into convex faces, and where they cross.

Which chords cross is read off the order of their ends around the face: exact, without geometry.
Geometry enters only to order the crossings along a chord; places too close to tell apart are
compared in rationals, so several chords through one point give one point.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxregions.engines.edges import Zeros, apart_from, in_order, ragged, starts_of, undecided_runs
from jaxregions.engines.mesh import Edges, Mesh
from jaxregions.engines.points import Ledger, U, crossing, point, values
from jaxregions.engines.signs import Signs

__all__ = [
    "Boundary",
    "Chords",
    "Crossings",
    "boundary",
    "corner_zeros",
    "crossings",
    "find_chords",
    "two_by_two",
]

PAIRS = 1 << 22  # pairs of chords looked at in one step


class Boundary(NamedTuple):
    """Corners of all faces and the zeros between them, counter-clockwise, face after face.

    A position is an index into these; N vertices and P points where switching values vanish
    inside edges are its nodes, vertices first.
    corner: (H,) the position where each half-edge begins. half: (B,) the half-edge that each
    position lies on. node: (B,). twin: (B,) the other side of the piece that begins there, -1 at
      the window's border.
    along, against: (P,) the positions of every point on both sides of its edge; against: -1 at the
      window's border.
    tail, head, t, error: (N + P,) where a node lies; a vertex is its own tail and head.
    """

    corner: np.ndarray
    half: np.ndarray
    node: np.ndarray
    twin: np.ndarray
    along: np.ndarray
    against: np.ndarray
    tail: np.ndarray
    head: np.ndarray
    t: np.ndarray
    error: np.ndarray


class Chords(NamedTuple):
    """Distinct chords, sorted by first end: positions first < last on the boundary of a face.

    cut_face, cut_entry: every switching value that cuts a face; several may share a chord, which
      is named cut_line.
    """

    face: np.ndarray
    entry: np.ndarray
    first: np.ndarray
    last: np.ndarray
    cut_face: np.ndarray
    cut_entry: np.ndarray
    cut_line: np.ndarray


class Crossings(NamedTuple):
    """Distinct points where chords cross inside a face.

    chord, point: (I,) incidences, sorted by chord and by place along it from first to last.
    on, other: (P,) a pair of chords through every point. t, error: (P,) its place along ``on``.
    """

    chord: np.ndarray
    point: np.ndarray
    on: np.ndarray
    other: np.ndarray
    t: np.ndarray
    error: np.ndarray


def boundary(mesh: Mesh, zeros: Zeros, edges: Edges) -> Boundary:
    """The positions of a mesh, and what lies there."""
    count = zeros.per_edge.take(edges.edge)
    corner = np.arange(len(count)) + starts_of(count)[:-1]
    edge = zeros.edge.take(zeros.first)
    rank = np.arange(len(edge)) - starts_of(zeros.per_edge).take(edge)
    half, other = edges.half.take(edge), edges.twin.take(edge)
    along = corner.take(half) + 1 + rank
    inner = np.flatnonzero(other >= 0)
    back = other.take(inner)
    against = np.full(len(edge), -1)
    against[inner] = behind = corner.take(back) + (count.take(half) - rank).take(inner)
    at = np.concatenate([corner, along, behind])
    own, node, twin = np.empty((3, len(at)), np.int64)
    own[at] = np.concatenate([np.arange(len(count)), half, back])
    node[at] = np.concatenate([mesh.origin, mesh.size + np.arange(len(edge)), mesh.size + inner])
    # Behind a point on one side comes the point before it on the other; -1: there is no other.
    first = np.where(mesh.twin < 0, -1, corner.take(mesh.twin) + count)
    second = np.where(against < 0, -1, against - 1)
    twin[at] = np.concatenate([first, second, along.take(inner) - 1])
    vertex, none = np.arange(mesh.size), np.zeros(mesh.size)
    tail, head = (np.concatenate([vertex, end.take(edge)]) for end in (edges.tail, edges.head))
    t, error = (np.concatenate([none, c.take(zeros.first)]) for c in (zeros.t, zeros.error))
    return Boundary(corner, own, node, twin, along, against, tail, head, t, error)


def find_chords(mesh: Mesh, signs: Signs, zeros: Zeros, rim: Boundary) -> Chords:
    """Every switching value that takes both signs inside a face, as a chord of it."""
    behind = rim.against.take(zeros.node)
    inner = np.flatnonzero(behind >= 0)
    position = np.concatenate([rim.along.take(zeros.node), behind.take(inner)])
    entry = np.concatenate([zeros.entry, zeros.entry.take(inner)])
    at_corner = np.zeros(len(position), bool)
    if len(signs.zero_row):
        corner, corner_entry = corner_zeros(mesh, signs)
        position = np.concatenate([position, rim.corner[corner]])
        entry = np.concatenate([entry, corner_entry])
        at_corner = np.concatenate([at_corner, np.ones(len(corner), bool)])
    key = mesh.face.take(rim.half.take(position)) * signs.values.shape[1] + entry
    order = np.argsort(key)
    key, position, entry, at_corner = (v.take(order) for v in (key, position, entry, at_corner))
    begin = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else key
    count = np.diff(np.append(begin, len(key)))
    pair = begin[count == 2]
    if 2 * len(pair) < len(key) and (np.repeat(count != 2, count) & ~at_corner).any():
        raise RuntimeError("signs at the vertices contradict each other: a line ends in a face")
    one, two = position[pair], position[pair + 1]
    first, last = np.minimum(one, two), np.maximum(one, two)
    if len(signs.zero_row):
        keep = ~(at_corner[pair] & at_corner[pair + 1] & _neighbours(mesh, rim, first, last))
        pair, first, last = pair[keep], first[keep], last[keep]
    order = np.argsort(first * len(rim.half) + last, kind="stable")
    pair, first, last = pair[order], first[order], last[order]
    new = np.ones(len(first), bool)
    new[1:] = (first[1:] != first[:-1]) | (last[1:] != last[:-1])
    face, entry = mesh.face[rim.half[first]], entry[pair]
    named = entry[new]
    line = named[np.cumsum(new) - 1]
    return Chords(face[new], named, first[new], last[new], face, entry, line)


def corner_zeros(mesh: Mesh, signs: Signs) -> tuple[np.ndarray, np.ndarray]:
    """(half-edge, entry) for every half-edge that begins where a switching value vanishes."""
    by_origin = np.argsort(mesh.origin, kind="stable")
    low = np.searchsorted(mesh.origin[by_origin], signs.zero_row)
    high = np.searchsorted(mesh.origin[by_origin], signs.zero_row, side="right")
    owner, place = ragged(high - low)
    return by_origin[low[owner] + place], signs.zero_entry[owner]


def _neighbours(mesh: Mesh, rim: Boundary, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Whether two corners of one face follow each other around it."""
    a, b = rim.half[first], rim.half[last]
    return (mesh.following[a] == b) | (mesh.following[b] == a)


def _crossing_pairs(chords: Chords) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of chords of one face whose ends interleave: first_i < first_j < last_i < last_j."""
    count = len(chords.first)
    low = np.searchsorted(chords.first, chords.first, side="right")
    high = np.searchsorted(chords.first, chords.last)
    span = high - low
    bounds = starts_of(span)
    left, right, begin = [], [], 0
    while begin < count:
        stop = int(np.searchsorted(bounds, bounds[begin] + PAIRS, side="right")) - 1
        stop = min(max(stop, begin + 1), count)
        owner, place = ragged(span[begin:stop])
        i = owner + begin
        j = low[i] + place
        cross = chords.last[j] > chords.last[i]
        left.append(i[cross])
        right.append(j[cross])
        begin = stop
    if not left:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(left), np.concatenate(right)


def _value_at(signs: Signs, rim: Boundary, position, entry) -> tuple[np.ndarray, np.ndarray]:
    """A switching value at boundary positions, interpolated, and the bound on its error."""
    node = rim.node.take(position)
    a, b = rim.tail.take(node), rim.head.take(node)
    za, zb = signs.at(a, entry), signs.at(b, entry)
    t, of_t = rim.t.take(node), rim.error.take(node)
    value = za + t * (zb - za)
    error = np.maximum(signs.error.take(a), signs.error.take(b))
    scale = np.abs(za) + np.abs(zb)
    return value, (error * (1 + 2 * of_t) + of_t * scale) * (1 + 8 * U) + 8 * U * scale


def _places(signs: Signs, rim: Boundary, chords: Chords, on, other):
    """Where chord ``other`` crosses chord ``on``: place along ``on`` and its error."""
    entry = chords.entry[other]
    za, ea = _value_at(signs, rim, chords.first.take(on), entry)
    zb, eb = _value_at(signs, rim, chords.last.take(on), entry)
    return crossing(za, zb, np.maximum(ea, eb))


def crossings(
    ledger: Ledger, signs: Signs, stage: int, rim: Boundary, chords: Chords, *, geometry: bool
) -> Crossings:
    """All points where chords of one face cross, and their exact order along every chord.

    Args:
      geometry: whether the order is wanted; otherwise only which crossings coincide is.
    """
    i, j = _crossing_pairs(chords)
    pairs = len(i)
    pair = np.concatenate([np.arange(pairs), np.arange(pairs)])
    on, other = np.concatenate([i, j]), np.concatenate([j, i])
    if not geometry:
        busy = np.flatnonzero(np.bincount(on, minlength=len(chords.first)).take(on) > 1)
        pair, on, other = pair[busy], on[busy], other[busy]
    t, error = _places(signs, rim, chords, on, other)
    order = in_order(on, t)
    pair, on, other, t, error = (v.take(order) for v in (pair, on, other, t, error))
    same = on[1:] == on[:-1]
    apart = apart_from(t, error)
    ledger.decisions += int(same.sum())
    unsettled = np.unique(on[1:][same & ~apart])
    node = np.arange(pairs)
    if len(unsettled):
        incidences = on, pair, t, error
        node, order = _settle(ledger, signs, stage, rim, chords, (i, j), incidences, unsettled)
        pair, on, t, error = pair[order], on[order], t[order], error[order]
    merged = len(unsettled) and len(np.unique(node)) < pairs
    first = np.arange(pairs)
    if merged:
        _, first, node = np.unique(node, return_index=True, return_inverse=True)
    at = node[pair]
    new = np.ones(len(at), bool)
    new[1:] = (on[1:] != on[:-1]) | (at[1:] != at[:-1])
    if not geometry:
        none = np.zeros(0)
        return Crossings(on[new], at[new], i[first], j[first], none, none)
    if merged:
        best = np.lexsort((error, at))
        best = best[np.flatnonzero(np.diff(at[best], prepend=-1))]
    else:
        one, two = two_by_two(at).T
        best = np.where(error.take(one) <= error.take(two), one, two)
    partner = np.where(i[pair[best]] == on[best], j[pair[best]], i[pair[best]])
    return Crossings(on[new], at[new], on[best], partner, t[best], error[best])


def two_by_two(at: np.ndarray) -> np.ndarray:
    """(P, 2) where 0, 1, ..., P - 1 come, twice each."""
    where = np.empty((len(at) // 2, 2), np.int64)
    where[at[::-1], 0] = np.arange(len(at))[::-1]
    where[at, 1] = np.arange(len(at))
    return where


# Exactly -----------------------------------------------------------------------------------------


def _key(signs: Signs, stage: int, rim: Boundary, position: int, entry: int):
    """The recipe of a boundary position of the chord of ``entry``."""
    node = rim.node[position]
    tail, head = int(signs.ids[rim.tail[node]]), int(signs.ids[rim.head[node]])
    return tail if tail == head else (stage, entry, tail, head)


def _crossing_key(signs, stage, rim, chords, on: int, other: int):
    """The recipe of the point where chord ``other`` crosses chord ``on``."""
    own = int(chords.entry[on])
    first = _key(signs, stage, rim, int(chords.first[on]), own)
    last = _key(signs, stage, rim, int(chords.last[on]), own)
    return stage, int(chords.entry[other]), first, last


def _settle(ledger, signs, stage, rim, chords, pairs, incidences, unsettled):
    """Exact points of the crossings that float64 cannot order along some chord.

    Returns (pairs,) one number a distinct point, and the order of all incidences.
    """
    i, j = pairs
    on, pair, t, error = incidences
    lows = np.searchsorted(on, unsettled)
    highs = np.searchsorted(on, unsettled, side="right")
    runs = []
    for low, high in zip(lows, highs, strict=True):
        runs += [r + low for r in undecided_runs(t[low:high], error[low:high])]
    a = np.concatenate([pair[r[:-1]] for r in runs])
    b = np.concatenate([pair[r[1:]] for r in runs])
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(i), len(i)))
    label = connected_components(graph, directed=False)[1]
    touched = np.unique(np.concatenate([a, b]))
    clusters = defaultdict(list)
    for p in touched.tolist():
        clusters[int(label[p])].append(p)
    node, place = np.arange(len(i)), {}
    for members in clusters.values():
        left = np.array(members)
        while len(left):
            p = int(left[0])
            key = _crossing_key(signs, stage, rim, chords, int(i[p]), int(j[p]))
            through = np.array([v == 0 for v in values(ledger, key, stage)])
            hit = through[chords.entry[i[left]]] & through[chords.entry[j[left]]]
            node[left[hit]] = p
            place[p] = point(ledger, key)
            ledger.settled_exactly += int(hit.sum())
            left = left[~hit]
    order = np.arange(len(on))
    for run in runs:
        if (node[pair[run]] == node[pair[run[0]]]).all():
            continue
        spots = [tuple(place[int(node[p])]) for p in pair[run]]
        chord = int(on[run[0]])
        ends = [
            point(ledger, _key(signs, stage, rim, int(e[chord]), int(chords.entry[chord])))
            for e in (chords.first, chords.last)
        ]
        axis = next(k for k in range(2) if ends[0][k] != ends[1][k])
        rising = ends[0][axis] < ends[1][axis]
        ranked = sorted(range(len(run)), key=lambda k: spots[k][axis], reverse=not rising)
        order[run] = run[ranked]
    return node, order

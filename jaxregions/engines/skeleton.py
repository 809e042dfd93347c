"""Edges of subdivisions and of flats in them.

An edge is a vertex with one constraint left to one of its sides, and both ends agree on the signs
of all constraints along it. Edges are found by pairing equal hashes of these sign vectors; every
hash must occur exactly twice.

Flats: cut all faces of the subdivision with a set S of the next stage's switching values. Their
zeros on a face of dimension |S| are a vertex, on one of dimension |S| + 1 an edge. The switching
values of one stage are affine on every face, so they are interpolated along edges.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxregions import exact
from jaxregions.engines.complexes import Apexes, Complex, Tables
from jaxregions.engines.points import CORNER, Ledger, U, Vertices, between, crossing, point, values
from jaxregions.engines.signs import packed

__all__ = [
    "Edges",
    "Layer",
    "Part",
    "child",
    "edges_of",
    "exact_row",
    "joined",
    "settled",
    "unpacked",
]


class Layer(NamedTuple):
    """What the parts of one stage share.

    number: of the stage's first switching value among the constraints. sides: 2k. directions:
    (D, k) in which heights are measured. inert: (W, n) switching values that do not take both signs
    in a window: whatever they are, even zero, they count as 1 there.
    """

    ledger: Ledger
    stage: int
    number: int
    sides: int
    words: Tables
    directions: np.ndarray
    inert: np.ndarray


class Edges(NamedTuple):
    """Edges of a part: rows and slots (which constraint is left) of both ends, and the hashes.

    The slot of an apex is -1; it is never the tail.
    """

    tail: np.ndarray
    tail_slot: np.ndarray
    head: np.ndarray
    head_slot: np.ndarray
    key: np.ndarray


@dataclasses.dataclass
class Part:
    """The vertices of some flats, each whole: zeros of ``depth`` switching values of one stage.

    unit: (V,) the last of these, -1 at depth 0. new: (V, depth) all of them. group: (V,) which
      flat, ascending.
    window, key, planes: (V,), (V,), (V, k - depth) as in Complex, of the earlier stages' faces.
    first: the switching value in column 0 of values (V, c). error: (V,) bounds these.
    heights: (V, D) along D directions and their bound (V,), None where no sweep follows.
    positive, negative: (V, words) the exact signs, bit 0: ``first``.
    apexes: None where there is none.
    parent, tail, head: where each vertex lies: between these rows of the parent.
    ids, at: numbers and places in the ledger; None where no geometry is wanted.
    """

    unit: np.ndarray
    new: np.ndarray
    group: np.ndarray
    window: np.ndarray
    key: np.ndarray
    planes: np.ndarray
    first: int
    values: np.ndarray
    error: np.ndarray
    heights: np.ndarray | None
    height_error: np.ndarray | None
    positive: np.ndarray
    negative: np.ndarray
    parent: Part | None
    tail: np.ndarray
    head: np.ndarray
    ids: np.ndarray | None
    at: Vertices | None
    apexes: Apexes | None = None
    known: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.key)

    def rows(self, keep: np.ndarray) -> Part:
        """Those vertices for which ``keep`` (V,) is true: whole flats, or points."""
        changes: dict[str, Any] = {"known": {}}
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            if isinstance(column, np.ndarray):
                changes[field.name] = column[keep]
        if self.at is not None:
            changes["at"] = self.at.rows(keep)
        if self.apexes is not None:
            changes["apexes"] = self.apexes.rows(keep)
        return dataclasses.replace(self, **changes)


# Edges -------------------------------------------------------------------------------------------


def edges_of(words: Tables, sides: int, part: Part | Complex) -> Edges:
    """All edges: each is named once from both of its ends.

    Args:
      sides: 2k.

    Raises:
      RuntimeError: some sign vector is not named exactly twice.
    """
    slots = part.planes.shape[1]
    inner, outer = words.zero ^ words.minus, words.zero ^ words.plus
    keys, owners, slot = [], [], []
    every = np.arange(len(part.key), dtype=np.int32)
    apexes = part.apexes
    for i in range(slots):
        plane = part.planes[:, i]
        inside = np.flatnonzero(plane >= sides).astype(np.int32)
        simple = every if apexes is None else np.flatnonzero(plane >= 0).astype(np.int32)
        keys += [(part.key ^ inner[plane])[simple], part.key[inside] ^ outer[plane[inside]]]
        owners += [simple, inside]
        slot.append(np.full(len(simple) + len(inside), i, np.int8))
    if apexes is not None:
        keys.append(apexes.key)
        owners.append(apexes.ray.astype(np.int32))
        slot.append(np.full(len(apexes.ray), -1, np.int8))
    key, owner, place = np.concatenate(keys), np.concatenate(owners), np.concatenate(slot)
    order = _pairs(key)
    tail, head = order[0::2], order[1::2]
    if apexes is not None:
        tail, head = np.where(place[tail] < 0, (head, tail), (tail, head))
    return Edges(owner[tail], place[tail], owner[head], place[head], key[tail])


def _pairs(key: np.ndarray) -> np.ndarray:
    """Indices that put equal keys, two each, next to each other."""
    bits = np.uint64(max(len(key) - 1, 1).bit_length())
    mask = (np.uint64(1) << bits) - np.uint64(1)
    mixed = np.sort((key & ~mask) | np.arange(len(key), dtype=np.uint64))
    order = (mixed & mask).astype(np.int64)
    if not _paired(key[order]):  # the upper bits of different keys may agree
        order = np.argsort(key)
        if not _paired(key[order]):
            raise RuntimeError("the skeleton contradicts itself: an edge without two ends")
    return order


def _paired(key: np.ndarray) -> bool:
    if len(key) % 2:
        return False
    return bool((key[0::2] == key[1::2]).all() and (key[1:-1:2] != key[2::2]).all())


# Slices ------------------------------------------------------------------------------------------


def child(
    layer: Layer, part: Part, edges: Edges, at: np.ndarray, unit: np.ndarray, *, sweep: bool
) -> Part:
    """The zeros of switching values ``unit`` on edges ``at``, flat after flat; signs still open.

    Args:
      sweep: whether heights are wanted.
    """
    tail, head = edges.tail[at], edges.head[at]
    error = np.maximum(part.error[tail], part.error[head])
    column = unit - part.first
    t, spread = crossing(part.values[tail, column], part.values[head, column], error)
    geometry = part.at is not None
    first = 0 if geometry else int(unit[0]) + 1
    skip = first - part.first
    own, bound = _along(part.values[:, skip:], tail, head, t, spread, error)
    if geometry:
        own[np.arange(len(at)), unit] = 0.0
    heights = height_error = None
    if sweep and part.heights is not None and part.height_error is not None:
        ends = np.maximum(part.height_error[tail], part.height_error[head])
        heights, height_error = _along(part.heights, tail, head, t, spread, ends)
    slot, slots = edges.tail_slot[at], part.planes.shape[1]
    others = np.array([[j for j in range(slots) if j != i] for i in range(slots)], np.int64)
    planes = part.planes[tail[:, None], others.reshape(slots, slots - 1)[slot]]
    new = np.concatenate([part.new[tail], unit[:, None]], axis=1)
    flat = np.flatnonzero(_changes(unit, part.group[tail]))
    group = np.repeat(np.arange(len(flat)), np.diff(np.append(flat, len(at))))
    place = None
    if part.at is not None and part.ids is not None:
        through = np.concatenate([planes, part.new[tail] + layer.number], axis=1)
        line = through.max(axis=1, initial=-1) - layer.sides
        line = np.maximum(line, CORNER)
        place = between(part.at, tail, head, t, spread, layer.stage, unit, line)
        place = place._replace(tail=part.ids[tail], head=part.ids[head])
    none = np.zeros((len(at), 0), np.uint64)
    return Part(
        unit,
        new,
        group,
        part.window[tail],
        edges.key[at] ^ layer.words.zero[layer.number + unit],
        planes,
        first,
        own,
        bound,
        heights,
        height_error,
        none,
        none,
        part,
        tail,
        head,
        None,
        place,
    )


def _changes(*columns: np.ndarray) -> np.ndarray:
    """(n,) where some column differs from the row before; the first row does."""
    new = np.ones(len(columns[0]), bool)
    new[1:] = np.logical_or.reduce([c[1:] != c[:-1] for c in columns])
    return new


def _along(rows, tail, head, t, spread, error) -> tuple[np.ndarray, np.ndarray]:
    """Affine functions at tail + t (head - tail), and one bound on the error of each row.

    Exact: A + T (B - A) with |A - a|, |B - b| <= error and |T - t| <= spread, so that it differs
    from a + t (b - a) by at most error + spread |b - a|; and the rounding of the latter.
    """
    low = rows[tail]
    step = rows[head]
    with np.errstate(all="ignore"):
        step -= low
        wide = np.abs(step).max(axis=1, initial=0.0)
        step *= t[:, None]
        step += low
        size = np.abs(step).max(axis=1, initial=0.0) + 2 * wide
        bound = (error + spread * wide + 8 * U * size) * (1 + 8 * U) + np.finfo(np.float64).tiny
    lost = ~np.isfinite(bound)
    if lost.any():
        bound[lost] = np.inf
    return step, bound


# Exact signs -------------------------------------------------------------------------------------


def exact_row(layer: Layer, part: Part, row: int) -> np.ndarray:
    """The exact switching values of the stage at a vertex of a part, then its heights."""
    if row not in part.known:
        if part.parent is None:
            assert part.ids is not None
            number = int(part.ids[row])
            known = _known(layer.ledger, number, layer.stage).copy()
            known[layer.inert[part.window[row]]] = exact.rational(1.0)
            heights = exact.rationals(layer.directions) @ point(layer.ledger, number)
            part.known[row] = np.concatenate([known, heights])
        else:
            a = exact_row(layer, part.parent, int(part.tail[row]))
            b = exact_row(layer, part.parent, int(part.head[row]))
            unit = int(part.unit[row])
            part.known[row] = a + (b - a) * (a[unit] / (a[unit] - b[unit]))
    return part.known[row]


def _known(ledger: Ledger, number: int, stage: int) -> np.ndarray:
    """``values``, interpolated where the vertex belongs to the stage: that spares evaluations."""
    own = int(ledger.vertices.stage[number])
    here = own == stage and (number, stage) not in ledger.known
    if own != CORNER and (here or number not in ledger.points):
        tail, head = int(ledger.vertices.tail[number]), int(ledger.vertices.head[number])
        a, b = _known(ledger, tail, own), _known(ledger, head, own)
        entry = int(ledger.vertices.entry[number])
        t = a[entry] / (a[entry] - b[entry])
        p, q = point(ledger, tail), point(ledger, head)
        ledger.points[number] = p + (q - p) * t
        ledger.known[number, own] = a + (b - a) * t
    return values(ledger, number, stage)


def settled(layer: Layer, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Give a part its exact signs, in rationals where floats leave them open.

    Returns:
      rows of vertices where another switching value vanishes: not simple; and (V,) those that are
      the same point as one of these, known without looking: points of the first stage on k of the
      switching values that vanish there.
    """
    ledger = layer.ledger
    positive = part.values > part.error[:, None]
    negative = part.values < -part.error[:, None]
    open_ = ~(positive | negative)
    if part.at is None:
        open_ &= np.arange(part.first, part.first + open_.shape[1]) > part.unit[:, None]
    else:
        open_[np.arange(part.size)[:, None], part.new] = False
    ledger.decisions += open_.size
    rows = np.flatnonzero(open_.any(axis=1))
    bad, same = [], np.zeros(part.size, bool)
    points = layer.stage == 0 and not part.planes.shape[1]
    for row in rows.tolist():
        if same[row]:
            continue
        every = exact_row(layer, part, row)
        known = every[part.first : part.first + open_.shape[1]]
        column = np.flatnonzero(open_[row])
        ledger.settled_exactly += len(column)
        sign = np.array([(v > 0) - (v < 0) for v in known[column]])
        if (sign == 0).any():
            bad.append(row)
            if points:
                through = np.flatnonzero([v == 0 for v in every[: layer.inert.shape[1]]])
                here = (part.window == part.window[row]) & np.isin(part.new, through).all(axis=1)
                here[row] = False
                same |= here
        positive[row, column], negative[row, column] = sign > 0, sign < 0
        part.values[row], part.error[row] = _rounded(known)
        if part.heights is not None and part.height_error is not None:
            part.heights[row], part.height_error[row] = _rounded(every[-len(layer.directions) :])
    part.positive, part.negative = packed(positive), packed(negative)
    return np.array(bad, np.int64), same


def _rounded(known: np.ndarray) -> tuple[np.ndarray, float]:
    near = np.array([exact.rounded(v) for v in known], np.float64)
    return near, 2 * U * float(np.abs(near).max(initial=np.finfo(float).tiny))


def unpacked(words: np.ndarray, size: int) -> np.ndarray:
    """The first ``size`` bits of each row of ``packed``."""
    flat = np.ascontiguousarray(words).view(np.uint8)
    return np.unpackbits(flat, axis=1, count=size, bitorder="little").astype(bool)


# The next subdivision ----------------------------------------------------------------------------


def joined(layer: Layer, parts: list[Part]) -> Complex:
    """The subdivision after the stage, from the vertices of all its flats."""
    words, size = layer.words, layer.inert.shape[1]
    units = layer.number + np.arange(size)
    columns, ray_rows, ray_keys, before = [], [], [], 0
    for part in parts:
        positive, negative = (unpacked(w, size) for w in (part.positive, part.negative))
        sign = np.where(positive, words.plus[units], np.where(negative, words.minus[units], 0))
        change = np.bitwise_xor.reduce(sign, axis=1)
        planes = np.concatenate([part.planes, part.new + layer.number], axis=1)
        weight = np.zeros(part.size, np.int64)
        if part.apexes is not None:
            weight = part.apexes.weight
            planes[weight > 0] = -1
            ray_rows.append(part.apexes.ray + before)
            ray_keys.append(part.apexes.key ^ change[part.apexes.ray])
        columns.append((part.ids, part.window, part.key ^ change, planes, weight))
        before += part.size
    ids, window, key, planes, weight = map(np.concatenate, zip(*columns, strict=True))
    order = np.argsort(window, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    ray = place[np.concatenate([np.zeros(0, np.int64), *ray_rows])]
    apexes = Apexes(weight[order], ray, np.concatenate([np.zeros(0, np.uint64), *ray_keys]))
    return Complex(ids[order], window[order], key[order], planes[order], apexes)

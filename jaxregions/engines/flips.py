"""The signs of a stage on the faces that it cuts: known at old corners, flipped across each chord.

No switching value is evaluated again. Inside a parent all faces hang together through pieces of
chords, so what differs between two of them is what the pieces on the way flip; and every
switching value that does not vanish on the whole parent has a sign at one of its corners.
"""

from __future__ import annotations

import numpy as np

from jaxregions.engines.edges import ragged
from jaxregions.engines.mesh import Mesh
from jaxregions.engines.records import Cuts

__all__ = ["face_signs", "unpacked"]


def face_signs(new: Mesh, cuts: Cuts) -> tuple[np.ndarray, np.ndarray]:
    """(F, words), twice: the switching values that are positive, negative on each face of ``new``.

    Args:
      new, cuts: the mesh refined by the stage, and how. Neither bit is set where a switching value
        vanishes on the whole face.
    """
    flips = _flips(new, cuts)
    positive, negative = cuts.signs.positive, cuts.signs.negative
    old = np.flatnonzero(new.origin < len(positive))
    face, row = new.face.take(old), new.origin.take(old)
    turned, p, n = (v.take(i, axis=0) for v, i in ((flips, face), (positive, row), (negative, row)))
    swap = (p ^ n) & turned
    owner = new.parent.take(face)
    first = np.append(0, 1 + np.flatnonzero(owner[1:] != owner[:-1]))
    p, n = (np.bitwise_or.reduceat(v ^ swap, first, axis=0) for v in (p, n))
    if (p & n).any():
        raise RuntimeError("signs at the corners of a face contradict each other")
    p, n = p.take(new.parent, axis=0), n.take(new.parent, axis=0)
    swap = (p ^ n) & flips
    return p ^ swap, n ^ swap


def _flips(new: Mesh, cuts: Cuts) -> np.ndarray:
    """(F, words) what changes sign between the first face of a parent and each of its faces."""
    inner, outer, entry = cuts.pieces
    way = np.full(new.faces, -1)
    way[inner] = np.arange(len(inner))
    face = np.flatnonzero(way >= 0)
    way = way.take(face)
    up = np.arange(new.faces)
    up[face] = outer.take(way)
    flips = np.zeros((new.faces, cuts.signs.positive.shape[1]), np.uint64)
    flips[face] = _bits_across(new.parent.take(face), entry.take(way), cuts, flips.shape[1])
    while True:  # to twice as far up
        further = up.take(up)
        if (further == up).all():
            return flips
        flips ^= flips.take(up, axis=0)
        up = further


def _bits_across(face: np.ndarray, entry: np.ndarray, cuts: Cuts, words: int) -> np.ndarray:
    """The switching values that vanish on pieces of the chord ``entry`` of these old faces."""
    bits = np.zeros((len(face), words), np.uint64)
    bits[np.arange(len(face)), entry // 64] = _mask(entry)
    shares = np.flatnonzero(cuts.cut_entry != cuts.cut_line)
    if len(shares):
        size = cuts.signs.values.shape[1]
        key = cuts.cut_cell[shares] * size + cuts.cut_line[shares]
        order = np.argsort(key)
        wanted = face * size + entry
        low, high = (np.searchsorted(key[order], wanted, side=s) for s in ("left", "right"))
        owner, place = ragged(high - low)
        more = cuts.cut_entry[shares[order[low[owner] + place]]]
        np.bitwise_or.at(bits, (owner, more // 64), _mask(more))
    return bits


def _mask(entry: np.ndarray) -> np.ndarray:
    return np.uint64(1) << (entry & 63).astype(np.uint64)


def unpacked(positive: np.ndarray, negative: np.ndarray, size: int) -> np.ndarray:
    """(F, size) int8: 1, -1 or 0 from two rows of bits."""
    plus, minus = (
        np.unpackbits(w.view(np.uint8), axis=1, count=size, bitorder="little").view(np.int8)
        for w in (positive, negative)
    )
    return plus - minus

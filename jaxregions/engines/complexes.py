"""Subdivisions of windows of any dimension by their vertices, and the names of their faces.

A subdivision is simple if every vertex lies on exactly k constraints (sides of the window, zero
sets of switching values). A face is named by the signs of all constraints on it: the points of one
sign vector form a convex set, hence a single face. Names are hashed.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from jaxregions.engines.points import CORNER, Vertices
from jaxregions.windows import Window

__all__ = ["Apexes", "Complex", "Tables", "box_corners", "boxes", "cells_around", "tables"]


class Tables(NamedTuple):
    """Random words whose exclusive or is the hash of a sign vector.

    zero, minus, plus: (C,) per constraint: the 2k sides of the window (minus: inside), then all
      switching values.
    """

    zero: np.ndarray
    minus: np.ndarray
    plus: np.ndarray


class Apexes(NamedTuple):
    """Vertices on more than k constraints, among others.

    weight: (V,) cells that an apex is the lowest vertex of, 0 for the others.
    ray, key: (R,) rows of the apexes and the hashes of their edges.
    """

    weight: np.ndarray
    ray: np.ndarray
    key: np.ndarray

    def rows(self, keep: np.ndarray) -> Apexes:
        place, rays = np.cumsum(keep) - 1, keep[self.ray]
        return Apexes(self.weight[keep], place[self.ray[rays]], self.key[rays])


class Complex(NamedTuple):
    """The vertices of a subdivision, window after window, simple but for its apexes.

    ids: (V,) numbers of the ledger's vertices. window: (V,). key: (V,) uint64 hash of the signs of
      all constraints. planes: (V, k) the constraints that each vertex lies on; -1 at an apex.
    """

    ids: np.ndarray
    window: np.ndarray
    key: np.ndarray
    planes: np.ndarray
    apexes: Apexes

    def rows(self, keep: np.ndarray) -> Complex:
        """Those vertices for which ``keep`` (V,) is true."""
        ids, window, key, planes, apexes = self
        return Complex(ids[keep], window[keep], key[keep], planes[keep], apexes.rows(keep))


def tables(constraints: int) -> Tables:
    """Words for this many constraints; always the same."""
    words = np.random.default_rng(2**61 - 1).integers(
        0, 2**64, (3, constraints), dtype=np.uint64, endpoint=False
    )
    return Tables(*words)


def box_corners(windows: Window) -> Vertices:
    """The 2^k corners of every window."""
    radii = np.asarray(windows.radii(), np.float64)
    signs = np.array(list(product((-1.0, 1.0), repeat=windows.dimension)))
    u = (signs * radii[:, None, :]).reshape(-1, windows.dimension)
    none = np.full(len(u), CORNER)
    window = np.repeat(np.arange(len(radii)), len(signs))
    return Vertices(u, np.zeros(len(u)), window, none, none, none, none, none)


def boxes(windows: int, k: int, words: Tables) -> Complex:
    """The windows themselves, on the vertices of ``box_corners``."""
    upper = np.array(list(product((0, 1), repeat=k)))
    planes = 2 * np.arange(k) + upper
    key = np.bitwise_xor.reduce(words.zero[planes] ^ words.minus[planes ^ 1], axis=1)
    own = np.random.default_rng(2**31 - 1).integers(0, 2**64, windows, dtype=np.uint64)
    each = np.repeat(np.arange(windows), len(upper))
    key = np.tile(key, windows) ^ own[each]
    planes, zeros = np.tile(planes, (windows, 1)), np.zeros(len(each), np.int64)
    none = np.zeros(0, np.int64)
    apexes = Apexes(zeros, none, none.astype(np.uint64))
    return Complex(np.arange(len(each)), each, key, planes, apexes)


def cells_around(words: Tables, skeleton: Complex) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cells around simple vertices: (N,) the vertex, the hash of the cell, and (N, k) whether
    it is above each constraint of the vertex."""
    k = skeleton.planes.shape[1]
    vertex = np.flatnonzero(skeleton.planes[:, 0] >= 0)
    key, above = skeleton.key[vertex], np.zeros((len(vertex), k), bool)
    for slot in range(k):
        plane = skeleton.planes[vertex, slot]
        both = np.flatnonzero(plane >= 2 * k)
        key = key ^ words.zero[plane]
        key = np.append(key ^ words.minus[plane], (key ^ words.plus[plane])[both])
        vertex, above = np.append(vertex, vertex[both]), np.concatenate([above, above[both]])
        above[len(plane) :, slot] = True
    return vertex, key, above

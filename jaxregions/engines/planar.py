"""Exact partitions of 2-d windows: one flat subdivision of all windows, refined stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxregions.engines import chords as chord
from jaxregions.engines.edges import zeros_on
from jaxregions.engines.mesh import Mesh, boxes, edges_of, restricted
from jaxregions.engines.points import Ledger, U, numbered, unnumbered
from jaxregions.engines.records import Cells, Cuts
from jaxregions.engines.signs import Signs
from jaxregions.engines.split import split, with_new_vertices

__all__ = ["begin", "cells", "counted", "middles", "refined", "restricted"]


def begin(windows: int) -> Mesh:
    """The windows themselves, one face each, on the vertices of ``corners``."""
    return boxes(windows)


def refined(
    ledger: Ledger,
    mesh: Mesh,
    stage: int,
    signs: Signs,
    meet: Callable[[np.ndarray], None] | None = None,
) -> tuple[Mesh, Cuts]:
    """The faces of the mesh cut by a stage; its new vertices are added to the ledger.

    Args:
      signs: of the stage, at the vertices of the mesh.
      meet: receives the vertices of the new mesh, before its faces are made.
    """
    edges, zeros, rim, found, cross = _arrangement(ledger, mesh, signs, stage, geometry=True)
    known = ledger.vertices.size
    ledger.vertices = with_new_vertices(ledger, mesh, stage, edges, zeros, rim, found, cross)
    vertices = np.concatenate([mesh.vertices, np.arange(known, ledger.vertices.size)])
    if meet is not None:
        meet(vertices)
    new, pieces = split(mesh, rim, found, cross, int(numbered(ledger.net, stage, 0)), vertices)
    children = np.bincount(new.parent, minlength=mesh.faces)
    if (children != _children(mesh, found, cross)).any():
        raise RuntimeError("the subdivision contradicts Euler's formula")
    return new, _cuts(mesh, signs, found, children, pieces)


def counted(ledger: Ledger, mesh: Mesh, stage: int, signs: Signs) -> Cuts:
    """How many faces a stage makes of each face, without making them."""
    _, _, _, found, cross = _arrangement(ledger, mesh, signs, stage, geometry=False)
    return _cuts(mesh, signs, found, _children(mesh, found, cross))


def _arrangement(ledger: Ledger, mesh: Mesh, signs: Signs, stage: int, *, geometry: bool):
    edges = edges_of(mesh)
    zeros = zeros_on(ledger, signs, stage, edges.tail, edges.head)
    rim = chord.boundary(mesh, zeros, edges)
    found = chord.find_chords(mesh, signs, zeros, rim)
    cross = chord.crossings(ledger, signs, stage, rim, found, geometry=geometry)
    return edges, zeros, rim, found, cross


def _children(mesh: Mesh, found: chord.Chords, cross: chord.Crossings) -> np.ndarray:
    """1 + chords + sum over distinct crossings of (chords through it - 1), per face."""
    children = 1 + np.bincount(found.face, minlength=mesh.faces)
    through = np.bincount(cross.point, minlength=len(cross.on))
    return children + np.bincount(
        found.face[cross.on], np.maximum(through, 2) - 1, minlength=mesh.faces
    ).astype(np.int64)


def _cuts(
    mesh: Mesh, signs: Signs, found: chord.Chords, children: np.ndarray, pieces: Any = None
) -> Cuts:
    corner_face, corner_entry = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if len(signs.zero_row):
        half, corner_entry = chord.corner_zeros(mesh, signs)
        corner_face = mesh.face[half]
    return Cuts(
        found.cut_face,
        found.cut_entry,
        found.cut_line,
        mesh.window,
        children,
        signs,
        mesh.window.take(mesh.face),
        mesh.origin,
        corner_face,
        corner_entry,
        np.diff(mesh.start),
        pieces,
    )


def middles(ledger: Ledger, mesh: Mesh) -> np.ndarray:
    """(F, 2) the mean of every face's corners, in float64."""
    at, size = mesh.vertices.take(mesh.origin), np.diff(mesh.start)
    columns = (ledger.vertices.u[:, axis].take(at) for axis in range(2))
    return np.stack([np.bincount(mesh.face, c) / size for c in columns], axis=1)


def cells(ledger: Ledger, mesh: Mesh, witness: np.ndarray) -> Cells:
    """Faces with witness points, their ``middles``, and the facets between them."""
    half = np.flatnonzero(np.arange(len(mesh.twin)) < mesh.twin)
    corner = mesh.vertices.take(mesh.origin)
    stage, entry = unnumbered(ledger.net, mesh.line.take(half))
    inside, area = _seen_from(witness, ledger, mesh)
    return Cells(
        mesh.window,
        mesh.parent,
        witness,
        inside,
        area,
        mesh.start,
        corner,
        mesh.face.take(half),
        mesh.face.take(mesh.twin.take(half)),
        corner.take(np.stack([half, mesh.following.take(half)], axis=1)),
        stage,
        entry,
    )


def _seen_from(witness: np.ndarray, ledger: Ledger, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Whether each witness w is proven to lie strictly left of all half-edges (a, b) of its face,
    and the face's area, that of the triangles a b w.

    The cross product of s = b - a and r = w - a, a and b known to within their errors: with e the
    sum of these errors it is off by no more than 2 e (|s| + |r| + e) + 16 U |s| |r|, largest
    coordinates, which covers the rounding too.
    """
    u, error = (c.take(mesh.vertices, axis=0) for c in (ledger.vertices.u, ledger.vertices.error))
    ends = [column.take(mesh.origin) for column in np.ascontiguousarray(u.T)]
    error = error.take(mesh.origin)
    with np.errstate(all="ignore"):  # an overflow proves nothing
        error = error + error.take(mesh.following)
        sides = [a.take(mesh.following) - a for a in ends]
        rays = [w.take(mesh.face) - a for w, a in zip(witness.T, ends, strict=True)]
        turn = sides[0] * rays[1] - sides[1] * rays[0]
        long, wide = (np.maximum(*map(np.abs, columns)) for columns in (sides, rays))
        bound = (2 * error * (long + wide + error) + 16 * U * long * wide) * (1 + 16 * U)
        doubtful = np.flatnonzero(~(turn > bound + np.finfo(np.float64).tiny))
    inside = np.ones(mesh.faces, bool)
    inside[mesh.face.take(doubtful)] = False
    return inside, np.bincount(mesh.face, turn) / 2

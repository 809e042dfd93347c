"""Windows whose lifted image has rank at most 2: everything in closed form, jitted and
differentiable."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxregions.theory import spherical
from jaxregions.theory.lift import Cone, Problem, cone, namespace, product


class Closed(NamedTuple):
    """P_0 .. P_k (..., k + 1), whether the centre is inside with e = 0 (...,), rank M (...,)."""

    probability: Any
    concurrent: Any
    rank: Any


def box(lifted: Problem, radii: Any) -> Closed:
    """Boxes of dimension k = 1 or 2."""
    shape = cone(lifted)
    xp = namespace(shape.shift, radii)
    if radii.shape[-1] == 1:
        return _close(xp.stack([-radii, radii], axis=-2), None, shape, xp)
    r1, r2 = radii[..., 0], radii[..., 1]
    zero = xp.zeros_like(r1)
    corners = xp.stack(
        [xp.stack(t, -1) for t in ((-r1, -r2), (r1, -r2), (r1, r2), (-r1, r2))], axis=-2
    )
    sides = xp.stack(
        [xp.stack(t, -1) for t in ((r1, zero), (zero, r2), (-r1, zero), (zero, -r2))], axis=-2
    )
    return _close(corners, 2 * sides, shape, xp)


def polygon(lifted: Problem, vertices: Any) -> Closed:
    """Convex polygons, counterclockwise, vertices (..., V, 2) relative to the lift's reference."""
    shape = cone(lifted)
    xp = namespace(shape.shift, vertices)
    return _close(vertices, xp.roll(vertices, -1, axis=-2) - vertices, shape, xp)


def _close(points: Any, edges: Any, shape: Cone, xp: Any) -> Closed:
    """From corners (..., V, k) and edges (..., V, 2) in window coordinates."""
    if shape.columns is not None:
        turn = xp.swapaxes(shape.columns, -1, -2)
        points = product(points, turn)
        edges = None if edges is None else product(edges, turn)
    image = (points + shape.shift[..., None, :]) + shape.rest[..., None, :]
    e, one = shape.height, xp.ones_like(shape.height)
    # Rank 1: the rows of R that are not zero are one, so the sum is the coordinate along it.
    line, spread = image.sum(-1), points.sum(-1)
    low, high = line.min(-1), line.max(-1)
    width = spread.max(-1) - spread.min(-1)
    first = spherical.segment_angle(low, high, width, e) / np.pi
    inside = (e == 0) & (low < 0) & (high > 0)
    if edges is None:
        return Closed(xp.stack([one, first], axis=-1), inside, shape.rank)
    full = shape.rank == 2
    around = spherical.perimeter(image, edges, e) / (2 * np.pi)
    first = xp.where(full, around, first)
    inside = xp.where(full, (e == 0) & spherical.contains_origin(image, edges), inside)
    second = xp.where(full, spherical.area(image, edges, e) / (2 * np.pi), 0.0)
    second = xp.where(inside & full, 1.0, second)
    return Closed(xp.stack([one, first, second], axis=-1), inside, shape.rank)

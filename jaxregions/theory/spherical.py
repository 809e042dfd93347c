"""Angle, perimeter and area of windows projected to the unit sphere, without cancellation.

A window at height e: points (y, e), y in R^1 or R^2, joined by straight edges. Nothing here
subtracts nearly equal numbers: angles are atan2(|x cross y|, x . y) with the cross product from the
edge itself, and areas are sums of triangles of one sign (van Oosterom and Strackee 1983).
"""

from __future__ import annotations

from typing import Any

from jaxregions.theory.lift import length, namespace


def segment_angle(low: Any, high: Any, width: Any, height: Any) -> Any:
    """Angle between (low, e) and (high, e): atan2(e width, low high + e^2), width = high - low.

    pi where e = 0 and low < 0 < high; 0 where e = 0 and the origin is outside or an end point.
    """
    return _angle(height * width, low * high + height * height)


def perimeter(vertices: Any, edges: Any, height: Any) -> Any:
    """L of convex polygons (..., V, 2), counterclockwise, at height e: (...,).

    Where e = 0 the projection is an arc, seen twice: L = 2 omega. A vertex at the origin itself
    hides one of the two ways.
    """
    xp = namespace(vertices, height)
    e = height[..., None]
    following = xp.roll(vertices, -1, axis=-2)
    cross = length(_cross(vertices, edges), e * length(edges[..., 0], edges[..., 1]))
    angles = _angle(cross, (vertices * following).sum(-1) + e * e)
    at_vertex = (height == 0) & (vertices == 0).all(-1).any(-1)
    return angles.sum(-1) * xp.where(at_vertex, 2.0, 1.0)


def area(vertices: Any, edges: Any, height: Any) -> Any:
    """S of convex polygons (..., V, 2), counterclockwise, at height e: (...,). 0 where e = 0."""
    xp = namespace(vertices, height)
    positive = height > 0
    e = xp.where(positive, height, 1.0)
    around = _pole_fan(vertices, edges, e, xp)
    total = around.sum(-1)
    # Around the pole where that costs at most one bit, else from the first vertex.
    steady = abs(around).sum(-1) <= 2 * total
    return xp.where(positive, xp.where(steady, total, _vertex_fan(vertices, edges, e, xp)), 0.0)


def contains_origin(vertices: Any, edges: Any) -> Any:
    """Whether 0 lies inside the open polygons (..., V, 2), counterclockwise."""
    return (_cross(vertices, edges) > 0).all(-1)


def _pole_fan(vertices: Any, edges: Any, height: Any, xp: Any) -> Any:
    """Signed areas of the triangles (pole, y_i, y_{i+1}), (..., V)."""
    e = height[..., None]
    following = xp.roll(vertices, -1, axis=-2)
    cross = _cross(vertices, edges)
    here, there = (length(y[..., 0], y[..., 1], e) for y in (vertices, following))
    dot = (vertices * following).sum(-1) + e * e
    sine = cross * cross + e * e * (edges * edges).sum(-1)
    apart = xp.where(dot < 0, here * there - dot, 1.0)
    cosine = xp.where(dot < 0, sine / apart, here * there + dot)
    return 2 * xp.arctan2(cross, cosine + e * (here + there))


def _vertex_fan(vertices: Any, edges: Any, height: Any, xp: Any) -> Any:
    """Sum of the areas of the triangles (y_0, y_i, y_{i+1}), i = 1 .. V-2."""
    e = height[..., None]
    a, b, c = vertices[..., :1, :], vertices[..., 1:-1, :], vertices[..., 2:, :]
    twice = _cross(xp.cumsum(edges, axis=-2)[..., :-2, :], edges[..., 1:-1, :])
    ab, ac, bc = ((x * y).sum(-1) + e * e for x, y in ((a, b), (a, c), (b, c)))
    na, nb, nc = (length(x[..., 0], x[..., 1], e) for x in (a, b, c))
    triangles = 2 * xp.arctan2(e * twice, na * nb * nc + ab * nc + ac * nb + bc * na)
    return triangles.sum(-1)


def _cross(x: Any, y: Any) -> Any:
    return x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]


def _angle(sine: Any, cosine: Any) -> Any:
    """atan2 with value and gradient 0 at (0, 0)."""
    xp = namespace(sine, cosine)
    defined = (sine != 0) | (cosine != 0)
    return xp.where(defined, xp.arctan2(sine, xp.where(defined, cosine, 1.0)), 0.0)


__all__ = ["area", "contains_origin", "perimeter", "segment_angle"]

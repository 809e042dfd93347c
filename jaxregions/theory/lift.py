"""A window seen from a layer with Gaussian weights: the cone over the lifted window.

Unit: (w . (h - q) + bias) / sw with h = A x + a, on the window x = c + B u. Lifted,

    u -> (M u + p, g) in R^{m+1},    M = A B,    p = A c + a - q,

and the unit switches where a uniformly random hyperplane through the origin cuts the lifted window.
An orthonormal frame of range M and the direction of what is orthogonal to it turn this into

    u -> (R u + s, e),    e = sqrt(|v|^2 + g^2),    v the part of p orthogonal to range M.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact
from jaxregions._records import as_array, is_traced, require_finite
from jaxregions.windows import Window, require_window


class Problem(NamedTuple):
    """Validated arguments: NumPy float64, or jax arrays where something is traced.

    matrix: M (..., m, k); None for the identity.
    base: p at the reference point that ``shift`` is measured from, (..., m).
    rest: what rounding took from ``base``, where it is known (identity), else zeros.
    shift: slice coordinates of the centre, (..., k).
    scale: sum of the sizes that were subtracted in ``base``, (...,): its rounding unit.
    ground: g = sb / sw, or 0 with BatchNorm, (...,).
    """

    matrix: Any
    base: Any
    rest: Any
    shift: Any
    scale: Any
    ground: Any


class Cone(NamedTuple):
    """u -> (R u + s, e), the lifted window in its own frame.

    columns: R (..., k, k) upper triangular with a diagonal >= 0; a zero row for each column of M
        that depends on earlier ones. None for the identity.
    shift: s (..., k), the centre's coordinates.
    rest: what rounding took from s, or zeros.
    height: e (...,), exactly 0 where what is left of it is rounding.
    rank: (...,) integers, rank M (to rounding).
    """

    columns: Any
    shift: Any
    rest: Any
    height: Any
    rank: Any


def problem(
    windows: Window, *, weight_std: Any, bias_std: Any, center: Any, A: Any, a: Any
) -> Problem:
    """The lift of a box or slice; ValueError on anything that does not fit."""
    require_window(windows)
    basis, anchor = windows.basis, windows.anchor
    if anchor is None:
        reference, shift = windows.center, None
    else:
        reference, shift = anchor, windows.shift
    k = windows.dimension
    return _lift(reference, basis, shift, k, weight_std, bias_std, center, A, a)


def polygon_problem(
    vertices: Any, *, weight_std: Any, bias_std: Any, center: Any, A: Any, a: Any
) -> tuple[Problem, Any]:
    """The lift around the first vertex of convex polygons (..., V, 2), and vertices from there."""
    vertices = as_array(vertices, "vertices")
    if vertices.ndim < 2 or vertices.shape[-1] != 2 or vertices.shape[-2] < 3:
        raise ValueError(f"vertices: expected (..., V, 2) with V >= 3, received {vertices.shape}")
    require_finite(vertices, "vertices")
    if not is_traced(vertices):
        vertices = _counterclockwise(np.asarray(vertices, np.float64))
    lifted = _lift(vertices[..., 0, :], None, None, 2, weight_std, bias_std, center, A, a)
    return lifted, vertices - vertices[..., :1, :]


def cone(lifted: Problem) -> Cone:
    """Gram-Schmidt on the columns of M, twice for orthogonality, then s and e."""
    xp = namespace(lifted)
    base, ground = lifted.base, lifted.ground
    if lifted.matrix is None:
        rank = np.full(base.shape[:-1], base.shape[-1])
        shift = base + lifted.shift
        return Cone(None, shift, lifted.rest, ground, rank)
    m, k = lifted.matrix.shape[-2:]
    rounding = exact.gamma(8 * (m + k) + 32, base.dtype)
    matrix = xp.broadcast_to(lifted.matrix, (*base.shape[:-1], m, k))
    frame: list[Any] = []
    rank: Any = 0
    for j in range(k):
        column = matrix[..., j]
        rest = _orthogonal_part(column, frame)
        size = _norm(rest, xp)
        independent = size > rounding * _norm(column, xp)
        rank = rank + independent
        safe = xp.where(independent, size, 1.0)[..., None]
        frame.append(xp.where(independent[..., None], rest / safe, 0.0))
    axes = xp.stack(frame, axis=-2)
    # Entries below the diagonal are zero but for rounding.
    columns = xp.triu(product(axes, matrix))
    orthogonal = _norm(_orthogonal_part(base, frame), xp)
    orthogonal = xp.where((rank == m) | (orthogonal <= rounding * lifted.scale), 0.0, orthogonal)
    shift = _apply(axes, base) + _apply(columns, lifted.shift)
    return Cone(columns, shift, lifted.rest, length(orthogonal, ground), rank)


def namespace(*values: Any) -> Any:
    """jax.numpy where anything is a jax array, else numpy (no compilation, float64)."""
    leaves = jax.tree_util.tree_leaves(values)
    return jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np


def length(*parts: Any) -> Any:
    """sqrt(sum of squares), with gradient 0 at 0."""
    xp = namespace(parts)
    total = sum(part * part for part in parts)
    positive = total > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, total, 1.0)), 0.0)


def product(x: Any, y: Any) -> Any:
    """x @ y, in full precision on every device."""
    if namespace(x, y) is np:
        return x @ y
    return jnp.matmul(x, y, precision="highest")


def _apply(matrix: Any, vector: Any) -> Any:
    return product(matrix, vector[..., None])[..., 0]


def _norm(vector: Any, xp: Any) -> Any:
    total = (vector * vector).sum(-1)
    positive = total > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, total, 1.0)), 0.0)


def _orthogonal_part(vector: Any, frame: list[Any]) -> Any:
    for _ in range(2):
        for axis in frame:
            vector = vector - axis * (axis * vector).sum(-1)[..., None]
    return vector


def _lift(reference, basis, shift, k, weight_std, bias_std, center, A, a) -> Problem:
    arguments = {"center": center, "A": A, "a": a}
    arrays = {n: None if v is None else as_array(v, n) for n, v in arguments.items()}
    weight_std, bias_std = as_array(weight_std, "weight_std"), as_array(bias_std, "bias_std")
    for name, value in {**arrays, "weight_std": weight_std, "bias_std": bias_std}.items():
        if value is not None:
            require_finite(value, name)
    traced = is_traced(reference, basis, shift, weight_std, bias_std, tuple(arrays.values()))
    to = jnp.asarray if traced else _float64
    reference, weight_std, bias_std = to(reference), to(weight_std), to(bias_std)
    basis, shift = (v if v is None else to(v) for v in (basis, shift))
    center, A, a = (v if v is None else to(v) for v in arrays.values())
    _check_scales(weight_std, bias_std, reference.shape[:-1])
    batch, d = reference.shape[:-1], reference.shape[-1]
    xp = namespace(reference)
    matrix, base, scale = basis, reference, _norm(reference, xp)
    if A is None:
        if a is not None:
            raise ValueError(f"a: expected None without A, received shape {a.shape}")
    else:
        if A.ndim < 2 or A.shape[-1] != d or A.shape[:-2] not in ((), batch):
            raise ValueError(f"A: expected (m, {d}) or {(*batch, 'm', d)}, received {A.shape}")
        base = _apply(A, reference)
        matrix = A if basis is None else product(A, basis)
        scale = scale * _norm(A.reshape(*A.shape[:-2], -1), xp)
        if a is not None:
            _check_vector("a", a, batch, A.shape[-2])
            base, scale = base + a, scale + _norm(a, xp)
    rest = xp.zeros_like(base)
    if center is not None:
        _check_vector("center", center, batch, base.shape[-1])
        base, rest = _two_difference(base, center)
        scale = scale + _norm(center, xp)
    if matrix is not None:
        rest = xp.zeros((*batch, k))
    ratio = bias_std / weight_std
    ground = xp.zeros(batch) if center is not None else xp.broadcast_to(ratio, batch)
    shift = xp.zeros((*batch, k)) if shift is None else shift
    return Problem(matrix, base, rest, shift, scale, ground)


def _float64(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)


def _two_difference(x: Any, y: Any) -> tuple[Any, Any]:
    """x - y rounded, and exactly what rounding took away (Knuth)."""
    total = x - y
    back = total - x
    return total, (x - (total - back)) - (y + back)


def _check_scales(weight_std: Any, bias_std: Any, batch: tuple[int, ...]) -> None:
    for name, value in (("weight_std", weight_std), ("bias_std", bias_std)):
        if value.shape not in ((), batch):
            raise ValueError(f"{name}: expected shape () or {batch}, received {value.shape}")
    if not is_traced(weight_std) and not (np.asarray(weight_std) > 0).all():
        raise ValueError(f"weight_std: expected > 0, received {np.min(weight_std)}")
    if not is_traced(bias_std) and not (np.asarray(bias_std) >= 0).all():
        raise ValueError(f"bias_std: expected >= 0, received {np.min(bias_std)}")


def _check_vector(name: str, value: Any, batch: tuple[int, ...], m: int) -> None:
    if value.shape not in ((m,), (*batch, m)):
        raise ValueError(f"{name}: expected {(m,)} or {(*batch, m)}, received {value.shape}")


def _counterclockwise(vertices: np.ndarray) -> np.ndarray:
    """The same polygons, counterclockwise; ValueError unless each is strictly convex."""
    edges = np.roll(vertices, -1, axis=-2) - vertices
    after = np.roll(edges, -1, axis=-2)
    turns = edges[..., 0] * after[..., 1] - edges[..., 1] * after[..., 0]
    angles = np.arctan2(turns, (edges * after).sum(-1)).sum(-1)
    once = np.round(abs(angles) / (2 * np.pi)) == 1
    if not (((turns > 0).all(-1) | (turns < 0).all(-1)) & once).all():
        raise ValueError(
            "vertices: expected the corners of strictly convex polygons in order, received turns "
            f"from {turns.min():.3g} to {turns.max():.3g}"
        )
    left = np.asarray((turns > 0).all(-1))[..., None, None]
    return np.where(left, vertices, vertices[..., ::-1, :])

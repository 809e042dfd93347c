"""Hyperplanes in centred form and the exact criterion for when one cuts a window."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxregions import _criterion
from jaxregions._records import as_array, build, is_traced, record, require_finite
from jaxregions.activations import PiecewiseLinear, relu
from jaxregions.windows import Window, require_window

__all__ = [
    "HitCounts",
    "Hyperplanes",
    "count_hits",
    "dense_hyperplanes",
    "distances",
    "margins",
    "meets",
    "refines",
]


@record
class Hyperplanes:
    """Parallel families {x : w_i . (x - p) = o_ik}, i = 1..n units, k = 1..K offsets each.

    The centred form keeps coincidence exact: all members with offset exactly 0 share the point p.
    An offset of +inf is a hyperplane at infinity: the unit has none (BatchNorm with gamma = 0, a
    zero normal); it meets and refines nothing. A normal of exactly zero is never a hyperplane
    either. The stored floats are the exact hyperplanes.

    Args:
      normal: (..., n, d).
      point: (..., d), the point p that the offsets are measured from.
      offset: (..., n, K), in units of |w| times input units.

    Raises:
      ValueError: shapes that do not fit, NaN, an infinite normal or point, an offset of -inf.

    Source: MATHEMATICS.md, recentring.
    """

    normal: np.ndarray
    point: np.ndarray
    offset: np.ndarray

    def __init__(self, normal, point, offset):
        normal, point = as_array(normal, "normal"), as_array(point, "point")
        offset = as_array(offset, "offset")
        if normal.ndim < 2 or point.ndim < 1 or offset.ndim < 2:
            raise ValueError(
                "expected normal (..., n, d), point (..., d) and offset (..., n, K), received "
                f"{normal.shape}, {point.shape} and {offset.shape}"
            )
        *lead, n, d = normal.shape
        if point.shape != (*lead, d) or offset.shape[:-1] != (*lead, n):
            raise ValueError(
                f"expected point {(*lead, d)} and offset {(*lead, n, 'K')} for a normal of shape "
                f"{normal.shape}, received {point.shape} and {offset.shape}"
            )
        require_finite(normal, "normal")
        require_finite(point, "point")
        if not is_traced(offset) and np.isneginf(np.asarray(offset)).any():
            raise ValueError(
                "offset: expected finite numbers or +inf (no hyperplane), received -inf"
            )
        for name, value in (("normal", normal), ("point", point), ("offset", offset)):
            object.__setattr__(self, name, value)

    def refines(self, windows: Window) -> Any:
        """``refines(self, windows)``."""
        return refines(self, windows)


class HitCounts(NamedTuple):
    """Counts per window, each of the windows' leading shape, int64.

    hits: hyperplanes (i, k) that refine the open window.
    units: units with at least one such hyperplane (= hits when K = 1).
    tangencies: hyperplanes that meet the closed window and refine nothing (exact ties).
    undecided: decisions closer than their rounding bound; 0 unless the numbers were traced, when
        no exact decision is possible and the float one stands.
    rechecked: decisions made again: all those of a unit for which the screening precision left
        one open.
    """

    hits: Any
    units: Any
    tangencies: Any
    undecided: Any
    rechecked: Any


def margins(planes: Hyperplanes, windows: Window) -> Any:
    """sum_j r_j |(B'w_i)_j| - |w_i . (c - p) - o_ik|, floats (..., n, K), for use under jit.

    Positive: refines the open window. Zero: tangent, or holds the whole slice. Negative: misses the
    closed window. Without a basis B = I. -inf where there is no hyperplane. In the inputs'
    precision; ``refines`` decides exactly.

    Raises:
      ValueError: planes and windows of different input dimension or leading shapes.

    Source: MATHEMATICS.md, window criterion.
    """
    _check_pair(planes, windows)
    value, reach = _values(planes, windows)
    return jnp.where(_present(planes), reach[..., None] - abs(value), -jnp.inf)


def _present(planes: Hyperplanes) -> Any:
    return jnp.isfinite(planes.offset) & (planes.normal != 0).any(-1)[..., None]


def distances(planes: Hyperplanes, points: Any) -> Any:
    """Euclidean distance |w_i . (x - p) - o_ik| / |w_i|_2 of points (..., d), floats (..., n, K).

    +inf where there is no hyperplane. Shape rules and errors as in ``margins``.
    """
    points = as_array(points, "points")
    _check_pair(planes, build(Window, center=points, radius=None))
    norm = jnp.linalg.norm(planes.normal, axis=-1)[..., None]
    value = _project(planes, points - _lift(planes.point, points))[..., None] - planes.offset
    absent = jnp.isinf(planes.offset) | (norm == 0)
    return jnp.where(absent, jnp.inf, abs(value) / jnp.where(norm == 0, 1.0, norm))


def refines(planes: Hyperplanes, windows: Window) -> Any:
    """Which hyperplanes cut the open windows: bool (..., n, K), strict criterion, exact.

    |w_i . (c - p) - o_ik| < sum_j r_j |(B'w_i)_j| on the stored floats: float64 with a rounding
    bound, rational where that leaves it open. Under jit or vmap of its arguments the float
    decision stands.

    Raises, source: as ``margins``.
    """
    if is_traced(planes, windows):
        return margins(planes, windows) > 0
    return _relation(planes, windows) > 0


def meets(planes: Hyperplanes, windows: Window) -> Any:
    """Which hyperplanes meet the closed windows: bool (..., n, K), exact (see ``refines``)."""
    if is_traced(planes, windows):
        return margins(planes, windows) >= 0
    return _relation(planes, windows) >= 0


def count_hits(planes: Hyperplanes, windows: Window, *, dtype: Any = np.float32) -> HitCounts:
    """Exact hit counts per window, in memory that does not grow with windows times units.

    Shared hyperplanes are screened in ``dtype`` (float32 at "highest" precision, or float64) on the
    default device; what is closer than the rounding bound is decided in float64 and, if still
    open, in rational arithmetic. So ``dtype`` changes the speed, never the counts.

    Raises:
      ValueError: as ``margins``; a dtype other than float32 and float64.

    Source: MATHEMATICS.md, window criterion.
    """
    _check_pair(planes, windows)
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype: expected float32 or float64, received {np.dtype(dtype)}")
    if is_traced(planes, windows):
        return _traced_counts(planes, windows)
    task, shape = _criterion.problem(planes, windows), windows.batch_shape
    shared = len(task.normal) == 1 and (task.basis is None or len(task.basis) == 1)
    if shared and len(task.anchor):
        hits, units, tangencies, rechecked = _criterion.count(task, np.dtype(dtype))
    else:
        relation, rechecked = _criterion.relation(task)
        hit = relation > 0
        hits, units = hit.sum((1, 2)), hit.any(2).sum(1)
        tangencies = (relation == 0).sum((1, 2))
    undecided = np.zeros(shape, np.int64)
    hits, units, tangencies, rechecked = (
        a.reshape(shape) for a in (hits, units, tangencies, rechecked)
    )
    return HitCounts(hits, units, tangencies, undecided, rechecked)


def _relation(planes: Hyperplanes, windows: Window) -> np.ndarray:
    """1 refines, 0 tangent, -1 misses: int8 (..., n, K)."""
    _check_pair(planes, windows)
    sign, _ = _criterion.relation(_criterion.problem(planes, windows))
    return sign.reshape(*windows.batch_shape, *sign.shape[1:])


def _traced_counts(planes: Hyperplanes, windows: Window) -> HitCounts:
    value, reach = _values(planes, windows)
    present = _present(planes)
    margin = jnp.where(present, reach[..., None] - abs(value), -jnp.inf)
    hit = margin > 0
    d, k = windows.input_dimension, windows.dimension
    size = jnp.linalg.norm(windows.center - _lift(planes.point, windows.center), axis=-1)
    spread = jnp.sqrt(k) * jnp.linalg.norm(windows.radii(), axis=-1)
    if windows.basis is not None:
        spread = spread * jnp.linalg.norm(windows.basis, axis=(-2, -1))
    scale = (size + 2 * spread)[..., None] * jnp.linalg.norm(planes.normal, axis=-1)
    scale = scale[..., None] + jnp.where(jnp.isinf(planes.offset), 0.0, abs(planes.offset))
    rate = _criterion.exact.gamma(2 * (d + k) + 32, margin.dtype)
    undecided = present & (abs(margin) <= rate * scale)
    return HitCounts(
        hit.sum((-2, -1)),
        hit.any(-1).sum(-1),
        (margin == 0).sum((-2, -1)),
        undecided.sum((-2, -1)),
        jnp.zeros(margin.shape[:-2], int),
    )


def _values(planes: Hyperplanes, windows: Window) -> tuple[Any, Any]:
    """w . (c - p) - o, (..., n, K), and the reach sum_j r_j |(B'w)_j|, (..., n), in floats."""
    centre = windows.points(np.zeros(windows.dimension))
    value = _project(planes, centre - _lift(planes.point, centre))
    slopes = planes.normal
    if windows.basis is not None:
        slopes = jnp.matmul(slopes, windows.basis, precision="highest")
    reach = jnp.einsum("...nk,...k->...n", abs(slopes), windows.radii(), precision="highest")
    return value[..., None] - planes.offset, reach


def _project(planes: Hyperplanes, moved: Any) -> Any:
    return jnp.einsum("...nd,...d->...n", planes.normal, moved, precision="highest")


def _lift(point: Any, like: Any) -> Any:
    return point.reshape((1,) * (like.ndim - point.ndim) + point.shape)


def _check_pair(planes: Hyperplanes, windows: Window) -> None:
    if not isinstance(planes, Hyperplanes):
        raise ValueError(f"planes: expected jr.Hyperplanes, received {type(planes).__name__}")
    require_window(windows)
    d = planes.normal.shape[-1]
    if windows.input_dimension != d:
        raise ValueError(
            f"expected windows in the hyperplanes' {d} dimensions, received "
            f"{windows.input_dimension}"
        )
    if planes.normal.shape[:-2] not in ((), windows.batch_shape):
        raise ValueError(
            "expected hyperplanes without leading axes, or with the windows' "
            f"{windows.batch_shape}, received {planes.normal.shape[:-2]}"
        )


def dense_hyperplanes(
    kernel: Any, bias: Any = None, *, activation: PiecewiseLinear = relu
) -> Hyperplanes:
    """Switching hyperplanes {x : w_i . x + b_i = tau_k} of a dense layer without normalisation.

    Args:
      kernel: (in, out), as Flax stores it.
      bias: None (zero) or (out,).
      activation: its breakpoints tau_1..tau_K, K >= 1.

    Returns:
      Centred at the origin, offsets tau_k - b_i.

    Raises:
      ValueError: shapes that do not fit, NaN or infinities, an activation without breakpoints.

    Source: MATHEMATICS.md, recentring.
    """
    kernel = as_array(kernel, "kernel")
    if kernel.ndim != 2:
        raise ValueError(f"kernel: expected shape (in, out), received {kernel.shape}")
    if not activation.breakpoints:
        raise ValueError(
            f"activation: expected at least one breakpoint, received {activation.name}"
        )
    inputs, units = kernel.shape
    bias = np.zeros(units) if bias is None else as_array(bias, "bias")
    if bias.shape != (units,):
        raise ValueError(f"bias: expected shape {(units,)}, received {bias.shape}")
    require_finite(bias, "bias")
    if not is_traced(kernel, bias):
        kernel, bias = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
    offset = np.asarray(activation.breakpoints) - bias[:, None]
    return Hyperplanes(kernel.T, np.zeros(inputs), offset)

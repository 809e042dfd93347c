"""Windows of dimension three and more: which method answers for which window.

rank A <= 2: closed forms. Rank q = k, centre outside the closed window: sums over faces, P_k by
the Cauchy measure. What has no elementary angle (q >= 6, rank q < k with q >= 3, a centre on a face
of codimension >= 4) is sampled, and says so in its error.
"""

from __future__ import annotations

import numpy as np

from jaxregions import exact
from jaxregions.theory import cauchy, faces, sampling, spherical
from jaxregions.theory import hits as hit_counts
from jaxregions.theory.faces import Lifted
from jaxregions.theory.lift import Problem, cone

MOST_DIMENSIONS = 10  # 3^k faces, 2^k corners


def box(lifted: Problem, radii: np.ndarray):
    """P_0 .. P_k (..., k + 1), errors, concurrent (...,), rank (...,)."""
    k = radii.shape[-1]
    if k > MOST_DIMENSIONS:
        raise ValueError(
            f"expected windows of dimension <= {MOST_DIMENSIONS} for crossings of more than one "
            f"hyperplane, received {k} (hit_probability takes any)"
        )
    found = [_crossings(window) for window in _windows(lifted, radii)]
    batch = radii.shape[:-1]
    probability, error = np.zeros((2, len(found), k + 1))
    for i, (p, doubt, _) in enumerate(found):
        probability[i, : len(p)], error[i, : len(p)] = p, doubt
    concurrent = np.array([c for _, _, c in found], bool).reshape(batch)
    rank = np.array([len(p) - 1 for p, _, _ in found], int).reshape(batch)
    return probability.reshape(*batch, k + 1), error.reshape(*batch, k + 1), concurrent, rank


def hits(lifted: Problem, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P_1 and its error, (...,), any k."""
    found = np.array([_hit(window) for window in _windows(lifted, radii)]).reshape(-1, 2)
    return found[:, 0].reshape(radii.shape[:-1]), found[:, 1].reshape(radii.shape[:-1])


def _windows(lifted: Problem, radii: np.ndarray):
    """Each window in its own frame, scaled to size 1: columns that vanish are left out."""
    shape = cone(lifted)
    batch, k = radii.shape[:-1], radii.shape[-1]
    shift, rest = (
        np.broadcast_to(v, (*batch, k)).reshape(-1, k) for v in (shape.shift, shape.rest)
    )
    height = np.broadcast_to(shape.height, batch).ravel()
    columns = shape.columns
    if columns is not None:
        columns = np.broadcast_to(columns, (*batch, k, k)).reshape(-1, k, k)
    for i, reach in enumerate(radii.reshape(-1, k)):
        if columns is None:
            scale = max(reach.max(), abs(shift[i]).max(), height[i])
            reach, s, low_bits, e = (v / scale for v in (reach, shift[i], rest[i], height[i]))
            yield _diagonal(reach, s, low_bits, e)
            continue
        matrix = columns[i] * reach
        rows, used = (abs(matrix).sum(axis) > 0 for axis in (1, 0))
        matrix, s = matrix[rows][:, used], shift[i][rows]
        scale = max(abs(matrix).max(initial=0.0), abs(s).max(initial=0.0), height[i]) or 1.0
        matrix, s, e = matrix / scale, s / scale, height[i] / scale
        if matrix.shape[0] == matrix.shape[1] and matrix.size and cauchy.is_diagonal(matrix):
            yield _diagonal(np.diag(matrix), s, np.zeros_like(s), e)
        else:
            yield Lifted(matrix, s, float(e), None, None)


def _diagonal(reach, shift, rest, height) -> Lifted:
    low, high = (shift - reach) + rest, (shift + reach) + rest
    columns = np.diag(reach) if len(reach) <= MOST_DIMENSIONS else reach[None]
    return Lifted(columns, shift, float(height), low, high)


def _crossings(window: Lifted) -> tuple[np.ndarray, np.ndarray, bool]:
    """P_0 .. P_q, errors, concurrent."""
    q, k = window.columns.shape
    if q <= 2:
        return _flat(window)
    gauge = _gauge(window) if window.height == 0 else None
    if gauge is not None and gauge < 1:
        return np.ones(q + 1), np.zeros(q + 1), True
    tangent = _tangent(window) if gauge == 1 and q == k else None
    if tangent is not None:
        return tangent, exact.gamma(64, np.float64) * tangent, False
    if q < k or gauge == 1:
        probability, error = sampling.crossings(window)
    else:
        probability, error = faces.crossings(window)
        if np.isnan(probability).any():
            sampled = sampling.crossings(window)
            missing = np.isnan(probability)
            probability = np.where(missing, sampled[0], probability)
            error = np.where(missing, sampled[1], error)
    unsure = q < k or gauge == 1 or q > 1 + faces.CODIMENSIONS
    if unsure and (gauge != 1 or window.low is not None):
        probability[1], error[1] = _sampled_or_orthogonal(window)
    return probability, error, False


def _hit(window: Lifted) -> tuple[float, float]:
    q = len(window.shift)
    if q <= 2 or window.columns.shape[1] == q <= 1 + faces.CODIMENSIONS:
        probability, error, _ = _crossings(window)
        return (probability[1], error[1]) if q else (0.0, 0.0)
    return _sampled_or_orthogonal(window)


def _sampled_or_orthogonal(window: Lifted) -> tuple[float, float]:
    if window.low is not None and window.high is not None:
        if window.height == 0 and ((window.low < 0) & (window.high > 0)).all():
            return 1.0, 0.0
        return hit_counts.orthogonal(window.low, window.high, window.height)
    return hit_counts.sampled(window)


def _flat(window: Lifted) -> tuple[np.ndarray, np.ndarray, bool]:
    """Rank 0, 1, 2: a point, a segment, a zonogon."""
    q, e = len(window.shift), np.float64(window.height)
    if q == 0:
        return np.ones(1), np.zeros(1), False
    if q == 1:
        reach = abs(window.columns).sum()
        low, high = window.shift[0] - reach, window.shift[0] + reach
        probability = np.array([1.0, spherical.segment_angle(low, high, 2 * reach, e) / np.pi])
        inside = bool(e == 0 and low < 0 < high)
    else:
        sides = np.where(_upper(window.columns), window.columns, -window.columns)
        sides = sides[:, np.argsort(np.arctan2(sides[1], sides[0]), kind="stable")].T
        edges = 2 * np.concatenate([sides, -sides])
        start = window.shift - sides.sum(0)
        corners = start + np.concatenate([np.zeros((1, 2)), np.cumsum(edges, axis=0)[:-1]])
        inside = bool(e == 0 and spherical.contains_origin(corners, edges))
        length = spherical.perimeter(corners, edges, e) / (2 * np.pi)
        covered = 1.0 if inside else spherical.area(corners, edges, e) / (2 * np.pi)
        probability = np.array([1.0, length, covered])
    return probability, exact.gamma(64, np.float64) * probability, inside


def _upper(columns: np.ndarray) -> np.ndarray:
    return (columns[1] > 0) | ((columns[1] == 0) & (columns[0] > 0))


def _gauge(window: Lifted) -> float:
    """How far out the lifted origin lies: < 1 inside the open window, 1 on its boundary.

    Exact for diagonal G; else 1 within rounding of 1.
    """
    if window.low is not None and window.high is not None:
        if ((window.low < 0) & (window.high > 0)).all():
            return 0.0
        return 1.0 if ((window.low <= 0) & (window.high >= 0)).all() else np.inf
    q, k = window.columns.shape
    if q == k:
        value = abs(np.linalg.solve(window.columns, window.shift)).max()
    else:
        cost = np.zeros(k + 1)
        cost[-1] = 1.0
        caps = np.concatenate([np.concatenate([np.eye(k), -np.eye(k)]), -np.ones((2 * k, 1))], 1)
        from scipy.optimize import linprog  # slow to import

        best = linprog(
            cost,
            A_ub=caps,
            b_ub=np.zeros(2 * k),
            A_eq=np.concatenate([window.columns, np.zeros((q, 1))], axis=1),
            b_eq=-window.shift,
            bounds=[(None, None)] * k + [(0, None)],
        )
        value = best.fun
    return 1.0 if abs(value - 1) <= _boundary(window) else float(value)


def _boundary(window: Lifted) -> float:
    condition = np.linalg.cond(window.columns)
    return float(exact.gamma(64, np.float64) * max(condition, 1.0))


def _tangent(window: Lifted) -> np.ndarray | None:
    """P_0 .. P_q for a centre on the boundary, by its tangent cone."""
    columns = window.columns
    if window.low is not None and window.high is not None:
        sign = (window.low == 0) * 1.0 - (window.high == 0) * 1.0
    else:
        place = -np.linalg.solve(columns, window.shift)
        sign = np.where(abs(abs(place) - 1) <= _boundary(window), -np.sign(place), 0.0)
    return faces.tangent_crossings((columns * sign)[:, sign != 0].T, columns[:, sign == 0].T)

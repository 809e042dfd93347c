"""Crossing probabilities of a box from its faces: P_j = sum_F P_j(F) gamma(F) + P_{j+2}.

The sum is over the j-dimensional faces F of the window; P_j(F) is the Cauchy measure of the lifted
face in its own span, gamma(F) the share of the sphere that the outward normals of the cone's facets
at F span. This is 2 v_{j+1} + 2 v_{j+3} + ... with the conic intrinsic volumes v_j written as
sums over faces of (internal angle) times (external angle).
"""

from __future__ import annotations

from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from jaxregions.theory import angles, cauchy

CODIMENSIONS = 3  # gamma is elementary for at most three normals


class Lifted(NamedTuple):
    """t -> (G t + s, e) on [-1, 1]^k, one window in its own frame.

    columns: G (q, k), q = rank; upper triangular with a positive diagonal where q = k.
    shift: s (q,).
    height: e.
    low, high: s -+ the half sides, (k,), where G is square and diagonal, else None.
    """

    columns: np.ndarray
    shift: np.ndarray
    height: float
    low: np.ndarray | None
    high: np.ndarray | None


def crossings(box: Lifted) -> tuple[np.ndarray, np.ndarray]:
    """P_0 .. P_k and their errors where rank = k; NaN where more than three normals meet.

    The lifted origin must not lie in the closed lifted window.
    """
    k = len(box.shift)
    probability, error = np.full(k + 3, np.nan), np.full(k + 3, np.nan)
    probability[0], error[0] = 1.0, 0.0
    probability[k + 1 :], error[k + 1 :] = 0.0, 0.0
    normals = facet_normals(box)
    for j in range(k, max(0, k - CODIMENSIONS - 1), -1):
        probability[j], error[j] = probability[j + 2], error[j + 2]
        for face, meeting in _faces(box, normals, j):
            value, doubt = cauchy.measure(*face)
            share = angles.share(*meeting, box.height)
            probability[j], error[j] = probability[j] + share * value, error[j] + share * doubt
    return probability[: k + 1], error[: k + 1]


def facet_normals(box: Lifted) -> tuple[np.ndarray, np.ndarray]:
    """Outward normals (e flat, up) of the cone's facets {-t_i <= 1}, {t_i <= 1} in R^{k+1}.

    flat (2, k, k), up (2, k); not unit vectors.
    """
    if box.low is not None and box.high is not None:
        reach = np.diag(box.columns)
        inverse = np.diag(1 / reach)
        up = np.stack([box.low / reach, -box.high / reach])
    else:
        inverse = np.linalg.inv(box.columns)
        turned = inverse @ box.shift
        up = np.stack([turned - 1, -turned - 1])
    return np.stack([-inverse, inverse]), up


def _faces(box: Lifted, normals: tuple[np.ndarray, np.ndarray], dimension: int):
    """((columns, shift, height) of each face in its own frame, its normals (flat, up))."""
    k = len(box.shift)
    for fixed in combinations(range(k), k - dimension):
        free = [i for i in range(k) if i not in fixed]
        for side in product((0, 1), repeat=len(fixed)):
            flat, up = (part[list(side), list(fixed)] for part in normals)
            yield _face(box, free, list(fixed), side), (flat, up)


def _face(box: Lifted, free: list[int], fixed: list[int], side: tuple[int, ...]):
    columns = box.columns[:, free]
    if box.low is not None and box.high is not None:
        ends = [(box.low, box.high)[s][i] for s, i in zip(side, fixed, strict=True)]
        height = np.sqrt(box.height**2 + sum(end**2 for end in ends))
        return columns[free], box.shift[free], height
    base = box.shift + box.columns[:, fixed] @ (2 * np.array(side) - 1.0)
    frame, triangle = np.linalg.qr(columns)
    flip = np.where(np.diag(triangle) < 0, -1.0, 1.0)
    frame, triangle = frame * flip, triangle * flip[:, None]
    rest = base - frame @ (frame.T @ base)
    rest = rest - frame @ (frame.T @ rest)
    return triangle, frame.T @ base, np.hypot(np.linalg.norm(rest), box.height)


def tangent_crossings(inward: np.ndarray, through: np.ndarray) -> np.ndarray | None:
    """P_0 .. P_q where the centre lies on the window's boundary and e = 0.

    The cone is then the window's tangent cone: lineality spanned by ``through`` (q - f, q), the
    directions of the face that holds the centre, and f <= 3 directions ``inward`` (f, q).
    None for f > 3.
    """
    f, q = inward.shape
    if f > CODIMENSIONS:
        return None
    if len(through):
        frame = np.linalg.qr(through.T)[0]
        inward = inward - (inward @ frame) @ frame.T
    volumes = np.zeros(q + 3)
    volumes[q - f : q + 1] = _simplicial_volumes(inward)
    return np.array([1.0] + [2 * volumes[j + 1 :: 2].sum() for j in range(1, q + 1)])


def _simplicial_volumes(rays: np.ndarray) -> np.ndarray:
    """Conic intrinsic volumes v_0 .. v_f of the cone over f = 1, 2 or 3 independent rays."""
    f = len(rays)
    top = _ray_share(rays)
    if f == 1:
        return np.array([0.5, 0.5])
    if f == 2:
        return np.array([0.5 - top, 0.5, top])
    edges = sum(_ray_share(rays[list(pair)]) for pair in combinations(range(3), 2)) / 2
    return np.array([0.5 - edges, 0.5 - top, edges, top])


def _ray_share(rays: np.ndarray) -> float:
    return angles.share(rays, np.zeros(len(rays)), 1.0)

"""Conic intrinsic volumes by projection: v_j = P(the projection of a Gaussian vector onto the cone
lies inside a j-dimensional face)."""

from __future__ import annotations

from itertools import product

import numpy as np

from jaxregions.theory.faces import Lifted

_SAMPLES = 1 << 13


def crossings(box: Lifted) -> tuple[np.ndarray, np.ndarray]:
    """P_0 .. P_q by fixed-seed sampling and one standard error each; any rank, centre anywhere
    outside the open window.

    The non-negative least-squares solution of a Gaussian vector in terms of the cone's generators
    uses independent ones, and almost surely as many as its face has dimensions.
    """
    from scipy.optimize import nnls

    q, k = box.columns.shape
    corners = np.array(list(product((-1.0, 1.0), repeat=k)))
    rays = np.concatenate(
        [corners @ box.columns.T + box.shift, np.full((len(corners), 1), box.height)], axis=1
    ).T
    rays = rays[: q + (box.height > 0)]
    size = np.linalg.norm(rays, axis=0)
    rays = rays[:, size > 0] / size[size > 0]
    rng = np.random.default_rng(0)
    dimension = [
        np.count_nonzero(nnls(rays, rng.standard_normal(len(rays)))[0]) for _ in range(_SAMPLES)
    ]
    share = np.bincount(dimension, minlength=q + 2)[: q + 2] / _SAMPLES
    above = np.array([share[j + 1 :: 2].sum() for j in range(q + 1)])
    error = 2 * np.sqrt(np.maximum(above * (1 - above), 1 / _SAMPLES) / _SAMPLES)
    return np.concatenate([[1.0], 2 * above[1:]]), np.concatenate([[0.0], error[1:]])

"""Randomised quasi-Monte Carlo points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def scrambles(dimension: int, count: int, points: int) -> Iterator[np.ndarray]:
    """Independently scrambled Sobol points (points, dimension) in the open cube, fixed seeds."""
    from scipy.stats import qmc  # slow to import

    for seed in range(count):
        u = qmc.Sobol(dimension, rng=np.random.default_rng(seed)).random(points)
        yield u.clip(np.finfo(float).tiny, 1 - np.finfo(float).eps)

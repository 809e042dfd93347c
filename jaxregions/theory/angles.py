"""Solid angles of cones over one, two or three vectors, as shares of the sphere in their span.

Vectors come as (e flat, up) with flat (c, q) and up (c,), so that the limit e -> 0, where they
become parallel or opposite, keeps its value.
"""

from __future__ import annotations

import numpy as np


def share(flat: np.ndarray, up: np.ndarray, height: float) -> float:
    """Share of the sphere of R^c that the cone over c <= 3 independent vectors covers."""
    if len(up) < 2:
        return (1.0, 0.5)[len(up)]
    unit = _unit(flat, up, height)
    if len(up) == 2:
        a, b = unit
        minors = np.outer(a, b) - np.outer(b, a)
        return float(np.arctan2(np.sqrt((minors**2).sum() / 2), a @ b) / (2 * np.pi))
    dots = unit @ unit.T
    if dots.min() > -0.5:
        return _triangle(unit) / (4 * np.pi)
    # Nearly opposite vectors: the lune between a vector's two ends less the triangle at its other.
    odd = int(np.argmin(dots.sum(0)))
    flat, up, unit = flat.copy(), up.copy(), unit.copy()
    flat[odd], up[odd], unit[odd] = -flat[odd], -up[odd], -unit[odd]
    sides = [_bivector(flat, up, height, odd, i) for i in range(3) if i != odd]
    return (2 * _angle(*sides) - _triangle(unit)) / (4 * np.pi)


def _unit(flat: np.ndarray, up: np.ndarray, height: float) -> np.ndarray:
    # A vector that vanishes with the height points along ``flat`` before it does.
    scale = np.where((up == 0) & (height == 0), 1.0, height)[:, None]
    vectors = np.concatenate([scale * flat, up[:, None]], axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _triangle(unit: np.ndarray) -> float:
    """Area of a spherical triangle (van Oosterom and Strackee 1983)."""
    volume = abs(np.prod(np.diag(np.linalg.qr(unit.T, mode="r"))))
    a, b, c = unit
    return float(2 * np.arctan2(volume, 1 + a @ b + a @ c + b @ c))


def _bivector(flat: np.ndarray, up: np.ndarray, height: float, i: int, j: int) -> np.ndarray:
    """(vector i) wedge (vector j), divided by the height."""
    minors = height * (np.outer(flat[i], flat[j]) - np.outer(flat[j], flat[i]))
    return np.append(up[i] * flat[j] - up[j] * flat[i], minors[np.triu_indices(flat.shape[1], 1)])


def _angle(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(2 * np.arctan2(np.linalg.norm(x - y), np.linalg.norm(x + y)))

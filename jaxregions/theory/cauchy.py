"""The multivariate Cauchy measure of boxes: P_k, k hyperplanes' common point lies in the window.

With the lifted window u -> (G t + s, e), t in [-1, 1]^k, G square of full rank and e > 0,

    P_k = Gamma((k+1)/2) / pi^((k+1)/2) |det G| e  int (e^2 + |G t + s|^2)^(-(k+1)/2) dt,

twice the share of the unit sphere of R^{k+1} that the cone over the window covers.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from jaxregions import exact
from jaxregions.theory import spherical
from jaxregions.theory.sobol import scrambles

_STEP = 0.1  # of the trapezoidal rules in the logarithm; their error is about exp(-pi^2 / 2 step)
_ORDER, _COARSE = 9, 7  # Gauss-Legendre orders of one adaptive box and of its check
_RELATIVE = 2.0**-40  # of the total, to one box
_SMALLEST = 2.0**-60  # half side of a box that is not halved again
_MOST_NODES = 1 << 24  # of one round of boxes
_CHUNK_NODES = 1 << 19
_SCRAMBLES, _POINTS = 16, 1 << 11


def measure(columns: np.ndarray, shift: np.ndarray, height: float) -> tuple[float, float]:
    """P_k and its estimated absolute error; columns G (k, k) upper triangular with a
    positive diagonal, shift (k,).

    k = 1, 2 closed; orthogonal G any k: one quadrature; k = 3, 4: adaptive cubature; above:
    randomised quasi-Monte Carlo. 0 where e = 0.
    """
    k = len(shift)
    if height == 0 or k == 0:
        return float(k == 0), 0.0
    if k == 1:
        reach = abs(columns[0, 0])
        low, high = shift[0] - reach, shift[0] + reach
        value = spherical.segment_angle(low, high, 2 * reach, np.float64(height))
        return _closed(value / np.pi)
    if k == 2:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ columns.T + shift
        edges = np.array([[2, 0], [0, 2], [-2, 0], [0, -2]]) @ columns.T
        return _closed(spherical.area(corners, edges, np.float64(height)) / (2 * np.pi))
    if is_diagonal(columns):
        return _orthogonal(abs(np.diag(columns)), shift, height)
    if k <= 4:
        return _adaptive(columns, shift, height)
    return _sequential(columns, shift, height)


def is_diagonal(columns: np.ndarray) -> bool:
    """Whether G is diagonal, to rounding."""
    off = columns - np.diag(np.diag(columns))
    size = np.linalg.norm(columns, axis=0)
    return bool((abs(off) <= exact.gamma(8 * len(columns) + 32, np.float64) * size).all())


def _closed(value: float) -> tuple[float, float]:
    return float(value), exact.gamma(64, np.float64) * float(value)


def _orthogonal(reach: np.ndarray, shift: np.ndarray, height: float) -> tuple[float, float]:
    """Cauchy = Gaussian / |Gaussian|: 2 int phi(z) prod_j P(low_j < e Z / z < high_j) dz."""
    middle, half = shift[:, None] / height, reach[:, None] / height
    far = max(1.0, (abs(middle) + half).max())
    x = np.arange(math.log(np.sqrt(np.finfo(float).eps) / far), math.log(40.0), _STEP)
    z = np.exp(x)
    terms = 2 * z * _density(z) * _normal_interval(middle * z, half * z).prod(0)
    fine, coarse = _STEP * terms.sum(), 2 * _STEP * terms[::2].sum()
    # The coarse rule loses half the digits of the fine one.
    return float(fine), abs(fine - coarse) ** 2 / max(fine, np.finfo(float).tiny) + float(
        exact.gamma(64, np.float64) * fine
    )


def _density(z: np.ndarray) -> np.ndarray:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _normal_interval(middle: np.ndarray, half: np.ndarray) -> np.ndarray:
    """P(|Z - middle| < half) with small relative error: by quadrature where that is short."""
    x, weight = np.polynomial.legendre.leggauss(16)
    short = sum(w * _density(middle + half * t) for t, w in zip(x, weight, strict=True)) * half
    near, far = abs(middle) - half, abs(middle) + half
    return np.where(half < 1, short, special.ndtr(-near) - special.ndtr(-far))


def _adaptive(columns: np.ndarray, shift: np.ndarray, height: float) -> tuple[float, float]:
    """Tensor Gauss-Legendre on boxes that are halved where two orders disagree."""
    k = len(shift)
    volume = abs(np.prod(np.diag(columns)))
    factor = math.gamma((k + 1) / 2) / math.pi ** ((k + 1) / 2) * volume * height
    size = np.linalg.norm(columns, axis=0)
    rules = [_tensor_rule(n, k) for n in (_ORDER, _COARSE)]

    def integrals(middle, half):
        found = []
        for nodes, weights in rules:
            parts = 1 + len(middle) * len(nodes) // _CHUNK_NODES
            for m, h in zip(*(np.array_split(v, parts) for v in (middle, half)), strict=True):
                t = m[:, None] + h[:, None] * nodes
                square = ((t @ columns.T + shift) ** 2).sum(-1) + height * height
                found.append((square ** (-(k + 1) / 2) @ weights) * h.prod(1) * factor)
        fine, coarse = np.concatenate(found).reshape(2, -1)
        return fine, abs(fine - coarse)

    middle, half = np.zeros((1, k)), np.ones((1, k))
    total = error = 0.0
    while len(middle):
        value, doubt = integrals(middle, half)
        # A box is done once its doubt, which is that of the lower order, is at rounding level.
        limit = _RELATIVE * max(total + value.sum(), np.finfo(float).tiny)
        open_ = (
            (doubt > limit) & (len(middle) * _ORDER**k <= _MOST_NODES) & (half.max(1) > _SMALLEST)
        )
        total, error = total + value[~open_].sum(), error + doubt[~open_].sum()
        middle, half = middle[open_], half[open_]
        rows, axis = np.arange(len(half)), np.argmax(half * size, axis=1)
        step = np.zeros_like(half)
        step[rows, axis] = half[rows, axis] / 2
        middle, half = np.concatenate([middle - step, middle + step]), np.tile(half - step, (2, 1))
    return float(total), float(error + exact.gamma(64, np.float64) * total)


def _tensor_rule(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    x, weight = np.polynomial.legendre.leggauss(n)
    nodes = np.stack(np.meshgrid(*[x] * k, indexing="ij"), -1).reshape(-1, k)
    weights = np.stack(np.meshgrid(*[weight] * k, indexing="ij"), -1).reshape(-1, k).prod(1)
    return nodes, weights


def _sequential(columns: np.ndarray, shift: np.ndarray, height: float) -> tuple[float, float]:
    """Gaussian box probabilities, last coordinate first (Genz 1992), averaged over the scale."""
    k = len(shift)
    inverse = np.linalg.inv(columns)
    tiny = np.finfo(float).tiny
    means = []
    for u in scrambles(k, _SCRAMBLES, _POINTS):
        scale = height / -special.ndtri(u[:, 0] / 2)
        found, x = np.ones(_POINTS), np.zeros((_POINTS, k))
        for j in reversed(range(k)):
            # t_j = sum_{i >= j} inverse_ji (x_i - s_i) lies in (-1, 1).
            known = (x[:, j + 1 :] - shift[j + 1 :]) @ inverse[j, j + 1 :]
            middle = (shift[j] - known / inverse[j, j]) / scale
            half = 1 / inverse[j, j] / scale
            low, high = middle - half, middle + half
            share = _normal_interval(middle, half)
            found = found * share
            if j:
                flip = low > 0
                a = np.where(flip, special.ndtr(-high), special.ndtr(low))
                z = special.ndtri((a + u[:, j] * share).clip(tiny, 1 - np.finfo(float).eps))
                x[:, j] = scale * np.clip(np.where(flip, -z, z), low, high)
        means.append(found.mean())
    return float(np.mean(means)), float(np.std(means, ddof=1) / np.sqrt(_SCRAMBLES))

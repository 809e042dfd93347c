"""Hits of other breakpoints: first layer, BatchNorm, whitened data, directions uniform."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
from scipy import special

from jaxregions._records import as_array, is_traced, require_finite
from jaxregions.activations import PiecewiseLinear
from jaxregions.theory.sobol import scrambles
from jaxregions.windows import Window

__all__ = ["breakpoint_hit_probability"]

_NODES = 24  # of one Gauss-Legendre rule between two kinks
_SCRAMBLES, _POINTS = 16, 1 << 12  # randomised quasi-Monte Carlo in three dimensions and more


def breakpoint_hit_probability(
    windows: Window,
    *,
    center: Any,
    variance: float,
    breakpoints: Any = None,
    activation: PiecewiseLinear | None = None,
    epsilon: float = 0.0,
    weight_std: float | None = None,
    return_error: bool = False,
) -> Any:
    """P(the switching hyperplane of breakpoint k refines the open window), (..., K).

    Whitened data, Sigma = v I: the unit w = |w| theta has the hyperplane
    {theta . (x - hbar) = sqrt(v + epsilon / |w|^2) t_k}, theta uniform on the sphere. So P is the
    average over theta (and, where epsilon > 0, over |w|) of

        1{|theta . (c - hbar) - sqrt(v + epsilon / |w|^2) t_k| < sum_j r_j |(B' theta)_j|}.

    d = 1, 2: exact in theta, Gauss-Legendre in |w|. d >= 3: randomised quasi-Monte Carlo with a
    fixed seed. Expected hits of a layer: n times the sum over k.

    Args:
      windows: leading axes (...,); concrete.
      center: hbar (d,) or (..., d).
      variance: v > 0.
      breakpoints: (K,) t_k = (tau_k - beta) / gamma in standardised coordinates; or
      activation: its breakpoints, for gamma = 1, beta = 0. Exactly one of the two.
      epsilon: of the BatchNorm, >= 0.
      weight_std: sw > 0, needed where epsilon > 0.
      return_error: also the estimated absolute errors, (..., K).

    Raises:
      ValueError: arguments that do not fit, traced ones.

    Source: MATHEMATICS.md, expected refinement.
    """
    if is_traced(windows, center, variance, breakpoints, epsilon, weight_std):
        raise ValueError("expected concrete arguments, received traced ones")
    if (breakpoints is None) == (activation is None):
        raise ValueError(
            f"expected breakpoints or activation, received {breakpoints!r}, {activation!r}"
        )
    offsets = np.asarray(
        as_array(breakpoints if activation is None else activation.breakpoints, "breakpoints")
    )
    if offsets.ndim != 1 or not offsets.size:
        raise ValueError(f"breakpoints: expected (K,), K >= 1, received shape {offsets.shape}")
    require_finite(offsets, "breakpoints")
    if not (variance > 0 and np.isfinite(variance)):
        raise ValueError(f"variance: expected > 0, received {variance!r}")
    if not (epsilon >= 0 and np.isfinite(epsilon)):
        raise ValueError(f"epsilon: expected >= 0, received {epsilon!r}")
    if epsilon > 0 and (weight_std is None or not weight_std > 0):
        raise ValueError(f"weight_std: expected > 0 with epsilon > 0, received {weight_std!r}")
    d, batch = windows.input_dimension, windows.batch_shape
    center = np.asarray(as_array(center, "center"))
    if center.shape not in ((d,), (*batch, d)):
        raise ValueError(f"center: expected {(d,)} or {(*batch, d)}, received {center.shape}")
    require_finite(center, "center")
    spread = 0.0 if weight_std is None else epsilon / weight_std**2
    moved = (np.asarray(windows.points(np.zeros(windows.dimension)), float) - center).reshape(-1, d)
    columns = _columns(windows)
    answer = [
        _low(p, m, offsets, variance, spread) if d <= 2 else _high(p, m, offsets, variance, spread)
        for p, m in zip(moved, columns, strict=True)
    ]
    values, errors = (
        np.array([a[i] for a in answer]).reshape(*batch, offsets.size) for i in range(2)
    )
    return (values, errors) if return_error else values


def _columns(windows: Window) -> np.ndarray:
    """(windows, d, k): the half sides of each window."""
    d, k = windows.input_dimension, windows.dimension
    basis = np.eye(d) if windows.basis is None else np.asarray(windows.basis, float)
    radii = np.asarray(windows.radii(), float)
    return (basis * radii[..., None, :]).reshape(-1, d, k)


def _low(moved, columns, offsets, variance, spread):
    """d = 1, 2: exact over directions, piecewise Gauss-Legendre over |w| / sw, a chi variable."""
    d, k = columns.shape
    corners = moved + np.array(list(product((-1.0, 1.0), repeat=k))) @ columns.T
    share = _line_share if d == 1 else _circle_share
    if spread == 0:
        value = np.array([share(corners, abs(t) * np.sqrt(variance)) for t in offsets])
        return value, np.finfo(float).eps * 64 * np.ones(len(offsets))
    values, errors = [], []
    for t in abs(offsets):
        fine, coarse = (
            _average_over_size(corners, share, t, variance, spread, n)
            for n in (_NODES, _NODES // 2)
        )
        values.append(fine)
        errors.append(abs(fine - coarse))
    return np.array(values), np.array(errors)


def _average_over_size(corners, share, t, variance, spread, nodes):
    """Average of share at the offset t sqrt(v + spread / chi^2), chi of d degrees of freedom."""
    d = corners.shape[1]
    if t == 0:
        return share(corners, 0.0)
    # Kinks: the offset reaches a corner, or the line through two corners.
    offsets = list(np.linalg.norm(corners, axis=1))
    if d == 2:
        for y, z in combinations(corners, 2):
            offsets.append(abs(y[0] * z[1] - y[1] * z[0]) / np.linalg.norm(z - y))
    inverse = (np.array(offsets) / t) ** 2 - variance  # spread / chi^2
    kinks = np.sqrt(spread / inverse[inverse > 0])
    top = 40.0  # the chi density is below the smallest float there
    edges = np.unique(np.clip([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, *kinks, top], 0, top))
    x, weight = np.polynomial.legendre.leggauss(nodes)
    x, weight = (x + 1) / 2, weight / 2
    # x^2 (3 - 2x) removes the square roots at both ends of a piece.
    place, weight = x * x * (3 - 2 * x), weight * 6 * x * (1 - x)
    low, width = edges[:-1, None], np.diff(edges)[:, None]
    chi = (low + width * place).ravel()
    mass = (
        (width * weight).ravel() * np.exp(-chi * chi / 2) * (chi if d == 2 else np.sqrt(2 / np.pi))
    )
    value = [share(corners, t * np.sqrt(variance + spread / c**2)) for c in chi]
    return float(mass @ np.array(value))


def _line_share(corners, offset):
    """d = 1: theta = +1 or -1."""
    low, high = corners.min(), corners.max()
    return ((low < offset < high) + (low < -offset < high)) / 2


def _circle_share(corners, offset):
    """Share of the directions theta with min_i theta . y_i < offset < max_i theta . y_i."""
    size = np.linalg.norm(corners, axis=1)
    reach = size > offset
    if not reach.any():
        return 0.0
    half = np.arccos(offset / size[reach])
    angle = np.arctan2(corners[reach, 1], corners[reach, 0])
    ends = np.sort(np.concatenate([angle - half, angle + half]) % (2 * np.pi))
    lengths = np.diff(ends, append=ends[0] + 2 * np.pi)
    middle = ends + lengths / 2
    value = np.stack([np.cos(middle), np.sin(middle)], axis=1) @ corners.T
    hit = (value.min(1) < offset) & (value.max(1) > offset)
    return float(lengths[hit].sum() / (2 * np.pi))


def _high(moved, columns, offsets, variance, spread):
    """d >= 3: scrambled Sobol points made Gaussian; the error is that of the mean of scrambles."""
    d = len(moved)
    means = []
    for u in scrambles(d, _SCRAMBLES, _POINTS):
        w = special.ndtri(u)
        size = np.linalg.norm(w, axis=1)
        reach = abs(w @ columns).sum(1)
        shift = np.sqrt(variance * size**2 + spread)
        value = (w @ moved)[:, None] - shift[:, None] * offsets
        means.append((abs(value) < reach[:, None]).mean(0))
    return np.mean(means, 0), np.std(means, 0, ddof=1) / np.sqrt(_SCRAMBLES)

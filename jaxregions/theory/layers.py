"""A dense layer with and without BatchNorm: hit probabilities and where the centroid lies."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from jaxregions import exact
from jaxregions._records import as_array, require_finite
from jaxregions.activations import PiecewiseLinear
from jaxregions.theory import conic, flat, lift
from jaxregions.theory.breakpoints import breakpoint_hit_probability
from jaxregions.theory.expected import CrossingProbabilities, crossing_probabilities
from jaxregions.windows import Window


class Layer(NamedTuple):
    """The arguments of ``conditions``; offsets t_k, (K,)."""

    windows: Window
    num_units: int
    weight_std: Any
    bias_std: Any
    center: Any
    A: Any
    a: Any
    offsets: np.ndarray
    covariance: np.ndarray | None
    epsilon: float

    @property
    def central(self) -> bool:
        """One breakpoint, t = 0: the hyperplanes are the references, hits a matter of a cone."""
        return self.offsets.tolist() == [0.0]

    def lifted(self, normalized: bool) -> lift.Problem:
        return lift.problem(
            self.windows,
            weight_std=self.weight_std,
            bias_std=self.bias_std,
            center=self.center if normalized else None,
            A=self.A,
            a=self.a,
        )

    def crossings(self, normalized: bool) -> CrossingProbabilities:
        return crossing_probabilities(
            self.windows,
            weight_std=self.weight_std,
            bias_std=self.bias_std,
            center=self.center if normalized else None,
            A=self.A,
            a=self.a,
        )


class Number(NamedTuple):
    """A value and a bound on its error, of one shape."""

    value: Any
    error: Any


def hits_with(layer: Layer) -> Number | str:
    """E[hits of a unit] with BatchNorm, or why it has no closed form here."""
    if layer.central:
        return _first_crossing(layer.lifted(True), layer.windows)
    variance = _common_variance(layer.covariance)
    if layer.A is not None or variance is None or np.ndim(layer.weight_std):
        return "breakpoints other than beta need the first layer and whitened data, Sigma = v I"
    value, error = breakpoint_hit_probability(
        layer.windows,
        center=layer.center,
        variance=variance,
        breakpoints=layer.offsets,
        epsilon=layer.epsilon,
        weight_std=layer.weight_std,
        return_error=True,
    )
    return Number(value.sum(axis=-1), error.sum(axis=-1))


def hits_without(layer: Layer) -> Number:
    """E[hits of a unit] without BatchNorm; off the breakpoint 0 an upper bound."""
    zeros = int((layer.offsets == 0).sum())
    others = len(layer.offsets) - zeros
    exactly = _first_crossing(layer.lifted(False), layer.windows)
    value, error = zeros * exactly.value, zeros * exactly.error
    if others:
        bias = np.broadcast_to(np.asarray(layer.bias_std, np.float64), layer.windows.batch_shape)
        cap = cap_of(layer)
        value = value + others * np.where(bias > 0, np.minimum(cap.value, 1.0), 1.0)
        error = error + others * np.where(bias > 0, cap.error, 0.0)
    return Number(value, error)


def cap_of(layer: Layer) -> Number:
    """P(|b| < sum_j r_j |(M'w)_j|), M = A B: the chance of the window moved to where h = 0.

    Where the bias is not random, that of some other bias.
    """
    windows, A = layer.windows, layer.A
    matrix = windows.basis if A is None else A if windows.basis is None else A @ windows.basis
    bias = np.asarray(layer.bias_std, np.float64)
    moved = Window(np.zeros((*windows.batch_shape, windows.dimension)), windows.radii())
    lifted = lift.problem(
        moved,
        weight_std=layer.weight_std,
        bias_std=np.where(bias > 0, bias, 1.0),
        center=None,
        A=matrix,
        a=None,
    )
    return _first_crossing(lifted, moved)


def _first_crossing(lifted: lift.Problem, windows: Window) -> Number:
    radii = np.asarray(windows.radii(), np.float64)
    if windows.dimension > 2:
        return Number(*conic.hits(lifted, radii))
    value = flat.box(lifted, radii).probability[..., 1]
    return Number(value, exact.gamma(64, np.float64) * value)


def gauge(seen: lift.Cone, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """min max_j |u_j| / r_j over R u + s = 0, and its relative rounding, (...,)."""
    if seen.columns is None:
        scale = (abs(seen.shift + seen.rest) / radii).max(axis=-1)
        return scale, np.full(scale.shape, exact.gamma(16, np.float64))
    batch, k = radii.shape[:-1], radii.shape[-1]
    columns = np.broadcast_to(seen.columns, (*batch, k, k)).reshape(-1, k, k)
    shift = np.broadcast_to(seen.shift, radii.shape).reshape(-1, k)
    found = []
    for matrix, s in zip(columns * radii.reshape(-1, 1, k), shift, strict=True):
        rows = abs(matrix).sum(axis=1) > 0
        found.append(_smallest(matrix[rows], -s[rows]))
    scale, condition = np.array(found).reshape(-1, 2).T
    return scale.reshape(batch), (exact.gamma(64, np.float64) * condition).reshape(batch)


def _smallest(matrix: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """min |u|_inf over matrix u = target, rows independent, and the condition number."""
    q, k = matrix.shape
    if q == 0:
        return 0.0, 1.0
    condition = float(np.linalg.cond(matrix))
    if q == k:
        return float(abs(np.linalg.solve(matrix, target)).max()), condition
    ones = np.ones((2 * k, 1))
    best = optimize.linprog(
        np.append(np.zeros(k), 1.0),
        A_ub=np.concatenate([np.concatenate([np.eye(k), -np.eye(k)]), -ones], axis=1),
        b_ub=np.zeros(2 * k),
        A_eq=np.concatenate([matrix, np.zeros((q, 1))], axis=1),
        b_eq=target,
        bounds=[(None, None)] * k + [(0, None)],
    )
    return float(best.fun), condition


def statistics(batch: Any, center: Any, covariance: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """hbar and the biased Sigma (None if unknown), from the batch or as given."""
    if (batch is None) == (center is None):
        raise ValueError("expected exactly one of batch and center, received both or none")
    if batch is not None:
        batch = np.asarray(as_array(batch, "batch"), np.float64)
        require_finite(batch, "batch")
        if batch.ndim != 2 or len(batch) < 2 or covariance is not None:
            raise ValueError(
                "batch: expected (N, m) with N >= 2 and no covariance beside it, received "
                f"{batch.shape}"
            )
        center = batch.mean(axis=0)
        return center, (batch - center).T @ (batch - center) / len(batch)
    center = np.asarray(as_array(center, "center"), np.float64)
    if covariance is None:
        return center, None
    covariance = np.asarray(as_array(covariance, "covariance"), np.float64)
    require_finite(covariance, "covariance")
    m = center.shape[-1]
    if covariance.shape != (m, m) or (np.diag(covariance) < 0).any():
        raise ValueError(
            f"covariance: expected {(m, m)} with a diagonal >= 0, received {covariance.shape}"
        )
    return center, covariance


def breakpoint_offsets(activation: PiecewiseLinear, gamma: float, beta: float) -> np.ndarray:
    """t_k = (tau_k - beta) / gamma, (K,)."""
    if not activation.breakpoints:
        raise ValueError(f"activation: expected a breakpoint, received {activation.name}")
    if gamma == 0 or not (math.isfinite(gamma) and math.isfinite(beta)):
        raise ValueError(f"expected finite gamma != 0 and beta, received {gamma} and {beta}")
    return (np.array(activation.breakpoints) - beta) / gamma


def _common_variance(covariance: np.ndarray | None) -> float | None:
    """v where Sigma = v I to rounding, v > 0."""
    if covariance is None:
        return None
    m = len(covariance)
    variance = float(np.trace(covariance) / m)
    off = abs(covariance - variance * np.eye(m)).max()
    return variance if variance > 0 and off <= exact.gamma(64 * m, np.float64) * variance else None

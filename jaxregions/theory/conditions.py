"""When BatchNorm increases expected refinement: five explicit conditions, each evaluated."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxregions import exact
from jaxregions._records import as_array, is_traced
from jaxregions.activations import PiecewiseLinear, relu
from jaxregions.theory import conic, lift
from jaxregions.theory.expected import CrossingProbabilities, _units, regions_from_crossings
from jaxregions.theory.layers import (
    Layer,
    Number,
    breakpoint_offsets,
    cap_of,
    gauge,
    hits_with,
    hits_without,
    statistics,
)
from jaxregions.windows import Window

__all__ = ["Condition", "Conditions", "conditions"]


class Condition(NamedTuple):
    """One condition in windows of leading axes (...,).

    applies: (...,) bool, its assumptions are met.
    left, right: (...,) its two sides; NaN where it does not apply.
    holds: (...,) bool, it applies and its inequality is true beyond the numerical error of the
        sides; then its conclusion is true.
    sentence: what was found, in words.
    """

    applies: np.ndarray
    left: np.ndarray
    right: np.ndarray
    holds: np.ndarray
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class Conditions(NamedTuple):
    """C1 to C5 of ``conditions``; str() gives their sentences."""

    c1: Condition
    c2: Condition
    c3: Condition
    c4: Condition
    c5: Condition

    def __str__(self) -> str:
        return "\n".join(str(condition) for condition in self)


def conditions(
    windows: Window,
    *,
    num_units: int,
    weight_std: Any,
    bias_std: Any = 0.0,
    batch: Any = None,
    center: Any = None,
    covariance: Any = None,
    A: Any = None,
    a: Any = None,
    activation: PiecewiseLinear = relu,
    gamma: float = 1.0,
    beta: float = 0.0,
    epsilon: float = 0.0,
) -> Conditions:
    """Five conditions on a dense layer of n units with Gaussian weights and biases, per window.

    The layer phi(gamma BN(w . h + b) + beta) against its twin phi(gamma (w . h + b) + beta), both
    on h = A x + a, where the window lies; M = A (slices: A B), t_k = (tau_k - beta) / gamma, p
    probabilities that a unit's hyperplane refines the window.

    C1, more hits: the centroid is inside, min over x in R^d with A x + a = hbar of
        max_j |u_j| / r_j < 1, u the window coordinates of x. Then p_BN = 1. For t_k != 0 (first
        layer, epsilon = 0): max_j (|c_j - hbar_j| + |t_k| sqrt(Sigma_jj)) / r_j < 1.
    C2, more hits: p_BN > P(|b| < sum_j r_j |(M'w)_j|), which is at least p without BN, whatever the
        upstream bias; it is at most 2 sw sum_j r_j |M_.j|_2 / (pi sb). Needs sb > 0.
    C3, more regions, exactly: n (p_BN - p) > expected crossings lost, k = 2 = rank M. Crossings
        are N - 1 - hits: C(n, 2) S / (2 pi) with the centre outside, n - 1 with it inside.
    C4, more regions, any k: 1 + E[distinct refining hyperplanes] > sum_{j<=k} C(n, j) p^j, a lower
        bound of E[N_BN] (2 sum_{j<q} C(n-1, j) with the centroid inside, q = rank M) and an upper
        bound of E[N].
    C5, more hits and yet fewer regions: E[N_BN] < E[N] though p_BN > p. Needs concurrent
        hyperplanes (hbar in the span of the image) and k <= 10.

    For several breakpoints, or t != 0, p stands for the sum over them: C1 for the largest |t_k|; C2
    and C4 in the first layer on whitened data, Sigma = v I, where C4 bounds what has no closed form
    without BN by C2's cap; C3 and C5 do not apply.

    Args:
      windows: leading axes (...,), concrete.
      num_units: n.
      weight_std, bias_std: sw > 0, sb >= 0, () or (...,).
      batch: (N, m) the layer's inputs h on the batch; or
      center: hbar (m,) or (..., m), and, for t != 0, covariance: the biased Sigma (m, m).
      A, a: the upstream map on the windows; None: the first layer.
      activation: phi; gamma != 0, beta, epsilon: BatchNorm's.

    Raises:
      ValueError: not exactly one of batch and center, shapes that do not fit, tracers, numbers out
        of range.

    Source: MATHEMATICS.md, expected refinement.
    """
    if is_traced(windows, weight_std, bias_std, batch, center, covariance, A, a):
        raise ValueError("expected concrete arguments, received traced ones")
    center, covariance = statistics(batch, center, covariance)
    offsets = breakpoint_offsets(activation, gamma, beta)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon: expected a finite number >= 0, received {epsilon}")
    A, a = (v if v is None else as_array(v, name) for name, v in (("A", A), ("a", a)))
    layer = Layer(
        windows, _units(num_units), weight_std, bias_std, center, A, a, offsets, covariance, epsilon
    )
    seen = lift.cone(layer.lifted(normalized=True))
    c1 = _centroid_window(layer, seen)
    with_bn, without = hits_with(layer), hits_without(layer)
    pair = None
    if layer.central and windows.dimension <= conic.MOST_DIMENSIONS:
        pair = layer.crossings(True), layer.crossings(False)
    return Conditions(
        c1,
        _bias_cap(layer, with_bn),
        _closed_form(layer, pair),
        _bounds(layer, seen, c1.holds & layer.central, with_bn, without),
        _fewer_regions(layer, seen, pair),
    )


def _centroid_window(layer: Layer, seen: lift.Cone) -> Condition:
    radii = np.asarray(layer.windows.radii(), np.float64)
    reason = "the centroid is not in the image of the window's span"
    applies, scale, doubt = (seen.height == 0) & (seen.rank > 0), np.nan, 0.0
    if layer.central:
        scale, doubt = gauge(seen, radii)
    elif layer.A is not None or layer.windows.basis is not None or layer.covariance is None:
        applies, reason = False, "a breakpoint off beta needs the first layer and its covariance"
    elif layer.epsilon > 0:
        applies, reason = False, "a breakpoint off beta needs epsilon = 0"
    else:
        applies = True
        reach = abs(layer.offsets).max() * np.sqrt(np.diag(layer.covariance))
        center = np.asarray(layer.windows.center, np.float64)
        scale = ((abs(center - layer.center) + reach) / radii).max(axis=-1)
        doubt = exact.gamma(16, np.float64)
    return _condition(
        layer,
        "C1 (centroid window)",
        applies,
        scale,
        1.0,
        scale < 1 - doubt,
        "every unit refines the window with BN, so it has at least as many hits",
        reason,
    )


def _bias_cap(layer: Layer, with_bn: Number | str) -> Condition:
    bias = np.broadcast_to(np.asarray(layer.bias_std, np.float64), layer.windows.batch_shape)
    applies, left, right, holds = False, np.nan, np.nan, False
    reason = "without a random bias there is no cap"
    if isinstance(with_bn, str):
        reason = with_bn
    elif (bias > 0).any():
        cap = cap_of(layer)
        applies, left, right = bias > 0, with_bn.value, len(layer.offsets) * cap.value
        holds = left - right > with_bn.error + len(layer.offsets) * cap.error
    claim = "BN has more expected hits, whatever the upstream bias"
    return _condition(
        layer, "C2 (bias cap)", applies, left, right, holds, claim, reason, larger=True
    )


def _closed_form(layer: Layer, pair: Any) -> Condition:
    applies, gained, lost, holds = False, np.nan, np.nan, False
    reason = "it needs a window of dimension 2, an upstream map of rank 2 on it, and t = 0"
    if pair is not None and layer.windows.dimension == 2:
        n = layer.num_units
        on, off = (_parts(crossings, n) for crossings in pair)
        applies = pair[0].rank == 2
        gained, lost = on[0].value - off[0].value, off[1].value - on[1].value
        holds = gained - lost > sum(part.error for part in (*on, *off))
    claim = "BN has more expected regions: the hits gained exceed the crossings lost"
    return _condition(
        layer, "C3 (closed form)", applies, gained, lost, holds, claim, reason, larger=True
    )


def _bounds(
    layer: Layer, seen: lift.Cone, inside: Any, with_bn: Number | str, without: Number
) -> Condition:
    applies, left, right, holds = False, np.nan, np.nan, False
    reason = with_bn if isinstance(with_bn, str) else ""
    if not isinstance(with_bn, str):
        n, k = layer.num_units, layer.windows.dimension
        # All units of a layer share the point of a line through the centroid.
        distinct = np.where((seen.rank <= 1) & (seen.height == 0), 1, n)
        pencil = np.array([2 * _subsets(n - 1, q - 1, 1.0) if q else 1.0 for q in range(k + 1)])

        def lower(chance):
            return np.where(inside, pencil[seen.rank], 1 + distinct * chance)

        applies, left, right = True, lower(with_bn.value), _subsets(n, k, without.value)
        least = lower(with_bn.value - with_bn.error)
        holds = least > _subsets(n, k, without.value + without.error)
    claim = "BN has more expected regions, by a lower bound of its own and an upper one without"
    return _condition(layer, "C4 (bounds)", applies, left, right, holds, claim, reason, larger=True)


def _fewer_regions(layer: Layer, seen: lift.Cone, pair: Any) -> Condition:
    applies, left, right, holds = False, np.nan, np.nan, False
    reason = f"it needs concurrent hyperplanes, t = 0 and k <= {conic.MOST_DIMENSIONS}"
    if pair is not None:
        n = layer.num_units
        ways = np.array([_ways(n, j) for j in range(layer.windows.dimension + 1)])
        left, right = (regions_from_crossings(crossings, n) for crossings in pair)
        doubt = sum(
            np.where(crossings.concurrent, 0.0, crossings.error @ ways) for crossings in pair
        )
        (on, off), applies = pair, seen.height == 0
        more_hits = (on.probability - off.probability - on.error - off.error)[..., 1] > 0
        holds = more_hits & (right - left > doubt)
    claim = "BN has more expected hits and yet fewer expected regions"
    return _condition(layer, "C5 (more is less)", applies, left, right, holds, claim, reason)


def _parts(crossings: CrossingProbabilities, n: int) -> tuple[Number, Number]:
    """E[hits] and E[N - 1 - hits], k = 2."""
    (_, p, second), (_, p_error, error) = (
        np.moveaxis(v, -1, 0) for v in (crossings.probability, crossings.error)
    )
    ways = _ways(n, 2)
    beyond = np.where(crossings.concurrent, n - 1.0, ways * second)
    return Number(n * p, n * p_error), Number(
        beyond, np.where(crossings.concurrent, 0.0, ways * error)
    )


def _subsets(n: int, most: int, chance: Any) -> Any:
    """sum_{j=0}^{most} C(n, j) chance^j; infinite beyond the float64 range."""
    j = np.arange(min(n, most) + 1)
    ways = special.gammaln(n + 1) - special.gammaln(j + 1) - special.gammaln(n - j + 1)
    with np.errstate(over="ignore"):
        return np.exp(ways + special.xlogy(j, np.asarray(chance)[..., None])).sum(axis=-1)


def _ways(n: int, j: int) -> float:
    return float(special.comb(n, j))


def _condition(
    layer: Layer,
    name: str,
    applies: Any,
    left: Any,
    right: Any,
    holds: Any,
    claim: str,
    reason: str,
    larger: bool = False,
) -> Condition:
    shape = layer.windows.batch_shape
    applies, holds = (np.broadcast_to(np.asarray(v, bool), shape) for v in (applies, holds))
    left, right = (np.where(applies, v, np.nan) for v in (left, right))
    holds = applies & holds
    total, known, true = applies.size, int(applies.sum()), int(holds.sum())
    if not known:
        return Condition(applies, left, right, holds, f"{name} does not apply: {reason}.")
    sign = ">" if larger else "<"
    if total == 1:
        sides = f"{left.item():.6g} {sign} {right.item():.6g}"
        text = f"holds ({sides}): {claim}" if true else f"applies, but not {sides}"
    else:
        text = f"applies in {known} and holds in {true} of {total} windows: there {claim}"
        text = text if true else text.partition(":")[0]
    return Condition(applies, left, right, holds, f"{name} {text}.")

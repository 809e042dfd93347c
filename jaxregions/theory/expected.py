"""Expected hits, regions and vertices of a dense layer with Gaussian weights: the front door."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jaxregions import exact
from jaxregions._records import is_traced
from jaxregions.theory import conic, flat, lift
from jaxregions.theory.lift import namespace
from jaxregions.windows import Window

__all__ = [
    "CrossingProbabilities",
    "crossing_probabilities",
    "expected_hits",
    "expected_regions",
    "expected_vertices",
    "hit_probability",
    "polygon_crossing_probabilities",
    "regions_from_crossings",
]


class CrossingProbabilities(NamedTuple):
    """P_0 .. P_k per window: j units' switching hyperplanes have a common point in the open window.

    probability: (..., k + 1), P_0 = 1, P_1 = P(hit).
    error: (..., k + 1), estimated absolute error of each: rounding where P_j is a closed form, the
        quadrature's own estimate, or one standard error where it is sampled.
    concurrent: (...,) bool, the lifted origin lies inside the window: every unit hits, all in one
        flat, and the number of regions is the same for almost all weights.
    rank: (...,) integers, rank of A (slices: A B), to rounding.
    """

    probability: Any
    error: Any
    concurrent: Any
    rank: Any


def crossing_probabilities(
    windows: Window,
    *,
    weight_std: Any,
    bias_std: Any = 0.0,
    center: Any = None,
    A: Any = None,
    a: Any = None,
) -> CrossingProbabilities:
    """P_j = P(a random subspace of codimension j meets the cone over the lifted window).

    Lift x -> (A x + a - q, g): without BatchNorm q = 0, g = bias_std / weight_std; with BatchNorm
    at beta = 0 q = hbar, g = 0. k = 1: P_1 = angle / pi. k = 2: P_1 = L / (2 pi), P_2 = S / (2 pi).
    k >= 3: P_j = 2 (v_{j+1} + v_{j+3} + ...), v the conic intrinsic volumes of that cone.

    k = 1, 2: closed form, float64 to about 1e-12 relative, under jit and grad in the precision
    of its arguments. k >= 3: concrete arguments only, quadrature or fixed-seed sampling.
    Whether e = 0 and what rank A has are decided to rounding.

    Args:
      windows: boxes or slices, leading axes (...,).
      weight_std: sw > 0, () or (...,), of the independent N(0, sw^2) weights.
      bias_std: sb >= 0, () or (...,), of the independent N(0, sb^2) raw biases; BatchNorm cancels
        them.
      center: hbar (m,) or (..., m), the batch mean of the layer's input: with BatchNorm. None:
        without.
      A, a: (m, d) and (m,), or with leading axes (...,): h = A x + a on the parent region that
        holds the window. None: the first layer.

    Raises:
      ValueError: shapes that do not fit, numbers out of range, traced arguments with k >= 3,
        k > 10.

    Source: MATHEMATICS.md, expected refinement.
    """
    lifted = lift.problem(
        windows, weight_std=weight_std, bias_std=bias_std, center=center, A=A, a=a
    )
    radii = _radii(windows, lifted)
    if windows.dimension <= 2:
        return _rounding(flat.box(lifted, radii))
    _require_concrete(lifted, radii)
    return CrossingProbabilities(*conic.box(lifted, radii))


def polygon_crossing_probabilities(
    vertices: Any,
    *,
    weight_std: Any,
    bias_std: Any = 0.0,
    center: Any = None,
    A: Any = None,
    a: Any = None,
) -> CrossingProbabilities:
    """``crossing_probabilities`` of convex polygons in a 2-dimensional input space, closed form.

    Args:
      vertices: (..., V, 2), the corners in order (either way round), strictly convex. Under a
        trace: counterclockwise, unchecked.
      others: as ``crossing_probabilities``. For a polygon in a slice c + B u give A B and A c + a.

    Raises:
      ValueError: polygons that are not strictly convex, shapes that do not fit.

    Source: MATHEMATICS.md, expected refinement.
    """
    lifted, relative = lift.polygon_problem(
        vertices, weight_std=weight_std, bias_std=bias_std, center=center, A=A, a=a
    )
    return _rounding(flat.polygon(lifted, relative))


def hit_probability(
    windows: Window,
    *,
    weight_std: Any,
    bias_std: Any = 0.0,
    center: Any = None,
    A: Any = None,
    a: Any = None,
) -> Any:
    """P(a unit's switching hyperplane refines the open window), (...,).

    P_1 of ``crossing_probabilities``: arguments, errors and source as there, but any dimension k.
    """
    lifted = lift.problem(
        windows, weight_std=weight_std, bias_std=bias_std, center=center, A=A, a=a
    )
    radii = _radii(windows, lifted)
    if windows.dimension <= 2:
        return flat.box(lifted, radii).probability[..., 1]
    _require_concrete(lifted, radii)
    return conic.hits(lifted, radii)[0]


def expected_hits(windows: Window, *, num_units: int, **layer: Any) -> Any:
    """E[units that refine the window] = n P_1, (...,). Arguments: ``crossing_probabilities``."""
    return _units(num_units) * hit_probability(windows, **layer)


def expected_regions(windows: Window, *, num_units: int, **layer: Any) -> Any:
    """E[N] = sum_{j=0}^{k} C(n, j) P_j, (...,), of n ReLU units.

    Where the lifted origin is inside the window, N = 2 sum_{j<q} C(n-1, j) for almost all weights,
    q = rank A. Arguments, errors, source: ``crossing_probabilities``.
    """
    return regions_from_crossings(crossing_probabilities(windows, **layer), num_units)


def expected_vertices(windows: Window, *, num_units: int, **layer: Any) -> Any:
    """E[points of the window where k hyperplanes meet] = C(n, k) P_k, (...,), distinct points.

    Where the lifted origin is inside the window, all meet in one: 1 if n >= k = rank A, else 0.
    Arguments, errors, source: ``crossing_probabilities``.
    """
    found = crossing_probabilities(windows, **layer)
    k = windows.dimension
    xp = namespace(found.probability)
    ways = float(math.comb(_units(num_units), k))
    one = (found.rank == k) * min(ways, 1.0)
    return xp.where(found.concurrent, one, ways * found.probability[..., k])


def regions_from_crossings(crossings: CrossingProbabilities, num_units: int) -> Any:
    """E[N] of n units from their crossing probabilities, (...,); see ``expected_regions``."""
    n, p = _units(num_units), crossings.probability
    xp = namespace(p)
    k = p.shape[-1] - 1
    ways = np.array([float(math.comb(n, j)) for j in range(k + 1)])
    pencil = 2 * np.cumsum([0.0] + [float(math.comb(n - 1, j)) for j in range(k)])
    return xp.where(crossings.concurrent, xp.asarray(pencil)[crossings.rank], p @ ways)


def _units(num_units: int) -> int:
    if isinstance(num_units, bool) or int(num_units) != num_units or num_units < 1:
        raise ValueError(f"num_units: expected an integer >= 1, received {num_units!r}")
    return int(num_units)


def _radii(windows: Window, lifted: lift.Problem) -> Any:
    radii = windows.radii()
    return radii if is_traced(lifted, radii) else np.asarray(radii, np.float64)


def _require_concrete(*values: Any) -> None:
    if is_traced(values):
        raise ValueError("expected concrete arguments for windows of dimension >= 3, traced ones")


def _rounding(closed: flat.Closed) -> CrossingProbabilities:
    p = closed.probability
    error = exact.gamma(64, p.dtype) * p
    return CrossingProbabilities(p, error, closed.concurrent, closed.rank)

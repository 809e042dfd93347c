"""P(hit) of a box of any dimension, without its regions.

A unit hits iff |sum_j s_j w_j + e xi| < sum_j |(G' w)_j|, w and xi Gaussian.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from jaxregions import exact
from jaxregions.theory.faces import Lifted
from jaxregions.theory.sobol import scrambles

_STEP = 0.1  # of the trapezoidal rule in the logarithm; its error is about exp(-pi^2 / 2 step)
_SCRAMBLES, _POINTS = 16, 1 << 12


def orthogonal(low: np.ndarray, high: np.ndarray, height: float) -> tuple[float, float]:
    """G diagonal: P(hit) = (2 / pi) int_0^inf Im phi(x) / x dx (Gil-Pelaez 1951), and its error.

    phi is the characteristic function of sum_j (r_j |w_j| - s_j w_j) - e xi, independent terms:
    phi(x) = exp(-e^2 x^2 / 2) prod_j (F(x (r_j - s_j)) + F(x (r_j + s_j))) / 2, F(y) the Faddeeva
    function at y / sqrt 2.
    """
    eps = np.finfo(float).eps
    ends = np.stack([-low, high])
    sizes = abs(ends[ends != 0])
    first = eps / (64 * max(sizes.max(), height))
    last = 1 / (sizes.min() * eps)
    if height > 0:
        last = min(last, 40 / height)
    x = np.exp(np.arange(math.log(first), math.log(last), _STEP))
    value = np.exp(-((height * x) ** 2) / 2).astype(complex)
    for a, b in ends.T:
        factor = special.wofz(a / math.sqrt(2) * x) + special.wofz(b / math.sqrt(2) * x)
        value = value * (factor / 2)
    terms = 2 / math.pi * _STEP * np.imag(value)
    fine, coarse = terms.sum(), 2 * terms[::2].sum()
    error = (fine - coarse) ** 2 + exact.gamma(64 + 4 * len(low), np.float64)
    if height == 0 and (ends == 0).any(0).all():
        fine -= 0.5 ** len(low)  # the centre is a corner: touching it alone is no hit
    return float(np.clip(fine, 0.0, 1.0)), float(error)


def sampled(box: Lifted) -> tuple[float, float]:
    """Any G: randomised quasi-Monte Carlo over w, xi integrated out; one standard error."""
    means = []
    for u in scrambles(len(box.shift), _SCRAMBLES, _POINTS):
        w = special.ndtri(u)
        reach, middle = abs(w @ box.columns).sum(1), abs(w @ box.shift)
        if box.height > 0:
            low, high = (middle - reach) / box.height, (middle + reach) / box.height
            # middle >= 0, so that neither tail is near 1.
            means.append((special.ndtr(-low) - special.ndtr(-high)).mean())
        else:
            means.append((middle < reach).mean())
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(_SCRAMBLES))

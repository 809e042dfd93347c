"""Means and their errors from streams of samples, in one fixed binary tree."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from jaxregions._records import record

__all__ = ["Estimate", "Moments", "Tree", "estimate", "merge", "moments"]


@record
class Estimate:
    """An expectation estimated from n independent samples; all fields of one shape.

    mean: of the samples.
    standard_error: sqrt(sum (x_i - mean)^2 / (n (n - 1))); infinite for n = 1.
    low, high: mean -+ t standard_error, t the quantile of Student's law with n - 1 degrees of
      freedom at the confidence asked for, two-sided.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Moments(NamedTuple):
    """Of some samples: how many, their sum, and their squared deviations from their mean.

    count (..., 1), total and spread (..., Q). Sums of integers below 2^53 are exact.
    """

    count: Any
    total: Any
    spread: Any


def merge(a: Moments, b: Moments) -> Moments:
    """Of both sets of samples together; a set of none changes no bit of the other.

    spread = spread_a + spread_b + (n_a total_b - n_b total_a)^2 / (n_a n_b (n_a + n_b)): products
    and no quotients of the totals, so that equal integers have no spread. In NumPy: compilers fuse
    products into sums or not, as they like, and the same bits are wanted everywhere.

    Source: T. Chan, G. Golub, R. LeVeque, Algorithms for computing the sample variance (1983).
    """
    count = a.count + b.count
    gap = a.count * b.total - b.count * a.total
    weight = np.maximum(a.count * b.count, 1) * np.maximum(count, 1)
    return Moments(count, a.total + b.total, a.spread + b.spread + gap * (gap / weight))


def moments(values: np.ndarray, valid: np.ndarray) -> Moments:
    """Of the rows of values (2^b, Q) where valid (2^b,), by pairwise merging: a complete tree."""
    count = valid[:, None].astype(np.float64)
    part = Moments(count, np.where(valid[:, None], values, 0.0), np.zeros(values.shape))
    while len(part.count) > 1:
        left, right = (Moments(*(v[side::2] for v in part)) for side in (0, 1))
        part = merge(left, right)
    return Moments(*(v[0] for v in part))


class Tree:
    """Merges the moments of equally long blocks, pushed in order, as one binary tree would.

    Together with ``moments`` that tree has the single samples for leaves, whatever the length
    2^b of the blocks. It holds one Moments per level.
    """

    def __init__(self):
        self._parts: list[tuple[int, Moments]] = []

    def push(self, part: Moments) -> None:
        """The next block."""
        level = 0
        while self._parts and self._parts[-1][0] == level:
            part, level = merge(self._parts.pop()[1], part), level + 1
        self._parts.append((level, part))

    def total(self) -> Moments:
        """Of all blocks so far, at least one."""
        *others, (_, whole) = self._parts
        for _, part in reversed(others):
            whole = merge(part, whole)
        return whole


def estimate(part: Moments, confidence: float) -> Estimate:
    """Mean, standard error and confidence interval of n >= 1 samples."""
    n = float(part.count[0])
    mean = part.total / n
    if n == 1:
        error = np.full_like(mean, np.inf)
        return Estimate(mean, error, mean - error, mean + error)
    error = np.sqrt(part.spread / (n * (n - 1)))
    reach = stdtrit(n - 1, (1 + confidence) / 2) * error
    return Estimate(mean, error, mean - reach, mean + reach)

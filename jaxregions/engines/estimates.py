"""How large a tree is that is too large to be walked, estimated from random descents.

A descent goes down level by level with at most K nodes: if a level has more, K of them are kept at
random, and their weights are multiplied by how many there were over K. The weights of the leaves
that it meets have the number of all leaves as their expected sum, since every node is kept with
probability 1 / weight. K = 1 is Knuth's estimate, the product of the numbers of children on the
way of one random walk.

Source: D. E. Knuth, Estimating the efficiency of backtrack programs (1975); R. Rubinstein and
R. Vaisman, Stochastic enumeration method for counting trees (2014).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, t

from jaxregions.engines.cells import explore
from jaxregions.engines.frontier import Limits
from jaxregions.engines.search import Sample, new_search
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["TreeEstimate", "estimate_cells", "interval", "leaf_weights"]

_TOGETHER = 16  # descents at once
POPULATION = 64  # nodes of a descent


class TreeEstimate(NamedTuple):
    """A statistical estimate, not a proof. mean: of the descents' sums, unbiased. low, high: an
    interval of 95% confidence for the number of leaves. descents: how many there were."""

    mean: float
    low: float
    high: float
    descents: int


def leaf_weights(
    branches: Callable[[tuple[int, ...]], int],
    descents: int,
    rng: np.random.Generator,
    population: int = 1,
) -> np.ndarray:
    """(descents,) sums of leaf weights in a tree; branches(path): children of a node."""
    sums = np.zeros(descents)
    for i in range(descents):
        level: list[tuple[int, ...]] = [()]
        weight = 1.0
        while level:
            children = [(*path, j) for path in level for j in range(branches(path))]
            sums[i] += weight * sum(branches(path) == 0 for path in level)
            if len(children) > population:
                weight *= len(children) / population
                kept = rng.choice(len(children), population, replace=False)
                children = [children[j] for j in kept]
            level = children
    return sums


def interval(weights: np.ndarray, proven: float = 1.0) -> TreeEstimate:
    """The mean of the weights and an interval for their expectation.

    Weights are skewed to the right like products of random factors: the interval is the union of
    Student's and of Cox's for log-normal weights, exp(m + s^2/2 -+ z sqrt(s^2/n + s^4/(2 (n - 1))))
    with m and s^2 the mean and variance of log w. It never goes below what is proven.

    Raises:
      ValueError: fewer than two weights.
    """
    count = len(weights)
    if count < 2:
        raise ValueError(f"weights: expected at least two descents, received {count}")
    mean, z = float(weights.mean()), float(norm.ppf(0.975))
    half = float(t.ppf(0.975, count - 1)) * float(weights.std(ddof=1)) / math.sqrt(count)
    logs = np.log(weights)
    level, variance = float(logs.mean()), float(logs.var(ddof=1))
    spread = z * math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    centre = level + variance / 2
    low = max(proven, min(mean - half, math.exp(centre - spread)))
    high = max(low, mean + half, math.exp(centre + spread))
    return TreeEstimate(mean, low, high, count)


def estimate_cells(
    net: CPAFunction,
    window: Window,
    *,
    descents: int = 64,
    population: int = POPULATION,
    seed: int = 0,
    max_seconds: float = math.inf,
    proven: float = 1.0,
) -> TreeEstimate | None:
    """An estimate of the regions of one window, from random descents in its sign tree.

    Every test on the way is decided as in ``count_cells``, so the estimate is unbiased as long as
    no limit ends the descents early: rounds that time ends are left out. None: not even two
    descents were finished.

    Args:
      window: without leading axes.
      proven: a proven lower bound.
    """
    rng, ends = np.random.default_rng(seed), time.monotonic() + max_seconds
    weights: list[np.ndarray] = []
    for start in range(0, descents, _TOGETHER):
        copies = window.reshape(1)[np.zeros(min(_TOGETHER, descents - start), int)]
        count = len(copies.center)
        sample = Sample(rng, population, count)
        search = new_search(net, copies, Limits(None, ends), sample=sample)
        explore(search)
        if search.pending.any() or search.unsettled.any():
            break
        weights.append(sample.leaves if net.stages else np.ones(count))
    found = np.concatenate([np.zeros(0), *weights])
    return interval(found, proven) if len(found) > 1 else None

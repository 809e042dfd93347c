"""How large a tree is that is too large to be walked, estimated from random descents.

A descent (``descents``) goes down level by level with at most K nodes and weights that make the sum
over the leaves it meets an unbiased estimate. K = 1 is Knuth's, the product of the numbers of
children on the way of one random walk. Descents are independent: their spread gives the interval.

Source: D. E. Knuth, Estimating the efficiency of backtrack programs (1975); R. Rubinstein and
R. Vaisman, Stochastic enumeration method for counting trees (2014).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from jaxregions.engines.descents import descend, thinned
from jaxregions.engines.frontier import Limits
from jaxregions.engines.potentials import Potential, Steps, learned
from jaxregions.engines.search import Stopped, new_search
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["TreeEstimate", "estimate_cells", "interval", "leaf_weights", "lowest", "sampled"]

DESCENTS = 16
POPULATION = 64  # nodes of a descent
_TEACHING = (4, 8, 8)  # nodes of a descent in the rounds from which potentials are learned
_GROUPS = 4  # of descents in the last round, of which time may leave some unfinished
_SHARE = 0.6  # of the time that is left, for the last round
_ENTRIES = 1 << 25  # numbers in the bases of nodes that go down together
_NODES = 1 << 13  # such nodes
_DOUBT = 0.025  # that the interval is too high, or too low
_QUANTILE = 0.9875  # of Student's distribution; 0.975 covers in 90 to 97% of runs, this in 95


class TreeEstimate(NamedTuple):
    """A statistical estimate, not a proof. mean: of the descents' sums, unbiased. low, high: an
    interval of 95% confidence for the number of leaves. proven: a lower bound that is proven.
    descents: how many there were. population: of at most how many nodes each; inf: of all, so that
    mean, low and high are the number itself."""

    mean: float
    low: float
    high: float
    proven: float
    descents: int
    population: float


def leaf_weights(
    branches: Callable[[tuple[int, ...]], int],
    descents: int,
    rng: np.random.Generator,
    population: int = 1,
) -> np.ndarray:
    """(descents,) sums of leaf weights in a tree; branches(path): children of a node."""
    sums, level = np.zeros(descents), [()] * descents
    owner, weight = np.arange(descents), np.ones(descents)
    while level:
        many = np.array([branches(path) for path in level])
        np.add.at(sums, owner[many == 0], weight[many == 0])
        level = [(*path, j) for path, m in zip(level, many, strict=True) for j in range(m)]
        owner, weight = np.repeat(owner, many), np.repeat(weight, many)
        keep, factor = thinned(rng, owner, np.log2(weight), population)
        level = [level[i] for i in keep]
        owner, weight = owner[keep], weight[keep] * factor
    return sums


def interval(
    weights: np.ndarray, proven: float = 1.0, population: float = math.inf
) -> TreeEstimate:
    """The mean of the weights and an interval for their expectation.

    Weights are skewed to the right like products of random factors: the interval is the union of
    Student's and of Cox's for log-normal weights, exp(m + s^2/2 -+ q sqrt(s^2/n + s^4/(2 (n - 1))))
    with m and s^2 the mean and variance of log w; never below ``lowest`` and what is proven. Both
    with a quantile q of Student's that makes up for what is left of the skewness.

    Raises:
      ValueError: fewer than two weights.
    """
    count = len(weights)
    if count < 2:
        raise ValueError(f"weights: expected at least two descents, received {count}")
    mean, q = float(weights.mean()), float(stdtrit(count - 1, _QUANTILE))
    with np.errstate(over="ignore"):
        half = q * float(weights.std(ddof=1)) / math.sqrt(count)
    logs = np.log(weights)
    level, variance = float(logs.mean()), float(logs.var(ddof=1))
    spread = q * math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    centre = level + variance / 2
    with np.errstate(over="ignore"):
        first, last = np.exp([centre - spread, centre + spread]).tolist()
    low = max(proven, lowest(weights), min(mean - half, first))
    high = max(low, mean + half, last)
    return TreeEstimate(mean, low, high, proven, count, population)


def lowest(weights: np.ndarray) -> float:
    """A lower bound on the expectation of independent positive weights, wrong with a probability of
    at most 1/40 whatever their distribution: the mean over s of

        prod_i (1 - s + s w_i / E)

    has expectation 1, so that it exceeds 40 with at most that probability; where it does, E is
    ruled out.

    Source: I. Waudby-Smith and A. Ramdas, Estimating means of bounded random variables by betting
    (2024).
    """
    shares = np.linspace(0.1, 1.0, 10)[:, None]
    low, high = math.log(float(weights.min())) - 5.0, math.log(float(weights.max()))
    for _ in range(60):
        middle = (low + high) / 2
        logs = np.log(1 - shares + shares * np.exp(np.log(weights) - middle)).sum(axis=1)
        ruled_out = np.logaddexp.reduce(logs) - math.log(len(shares)) >= -math.log(_DOUBT)
        low, high = (middle, high) if ruled_out else (low, middle)
    return math.exp(low)


def estimate_cells(
    net: CPAFunction,
    window: Window,
    *,
    descents: int = DESCENTS,
    population: int | None = None,
    seed: int = 0,
    max_seconds: float = math.inf,
    proven: float = 1.0,
) -> TreeEstimate | None:
    """An estimate of the regions of one window, from random descents in its sign tree.

    Every test on the way is decided as in ``count_cells``. Some rounds of descents with few nodes
    teach the potential of the last, which has as many as the time allows. The last round counts, or
    what was finished of it when time or Ctrl-C ended it, if that is half; else the one before;
    None: not even the first was finished.

    Args:
      window: without leading axes.
      population: nodes of a descent of the last round; None: as said, without a limit POPULATION.
      proven: a proven lower bound.
    """
    rng, ends = np.random.default_rng(seed), time.monotonic() + max_seconds
    steps, potential, found, took = Steps(), None, None, 0.0
    for taught in range(len(_TEACHING) + 1):
        last = taught == len(_TEACHING)
        size = population or (POPULATION if max_seconds == math.inf else _together(net, window))
        if not last:
            size = min(_TEACHING[taught], size)
        elif population is None and max_seconds < math.inf:
            more = _SHARE * (ends - time.monotonic()) / took
            if more < 1:  # no better than the round before
                break
            size = min(int(_TEACHING[-1] * more), size)
        start = time.monotonic()
        groups = _GROUPS if last else 1
        weights = sampled(net, window, rng, descents, size, potential, steps, ends, groups)
        if len(weights) < (max(2, descents // 2) if last else descents):
            break
        whole = weights.max() <= size  # no level had more nodes than were kept
        found = interval(weights, proven, math.inf if whole else size)
        if whole or len(weights) < descents:
            break
        took, potential = time.monotonic() - start, learned(steps, len(net.stages))
    return found


def sampled(
    net: CPAFunction,
    window: Window,
    rng: np.random.Generator,
    descents: int,
    population: int,
    potential: Potential | None,
    steps: Steps,
    ends: float = math.inf,
    groups: int = 1,
) -> np.ndarray:
    """(descents,) the weights of the leaves that each meets; fewer: time or Ctrl-C ended them.
    They go down together in some groups or more."""
    found = [np.zeros(0)]
    together = max(1, min(_together(net, window) // population, -(-descents // groups)))
    for start in range(0, descents, together):
        copies = np.zeros(min(together, descents - start), np.int64)
        if not net.stages:
            found.append(np.ones(len(copies)))
            continue
        search = new_search(net, window.reshape(1)[copies], Limits(None, ends))
        try:
            weights = descend(search, rng, population, potential, steps)
        except (Stopped, KeyboardInterrupt):
            break
        if weights is None:
            break
        found.append(weights)
    return np.concatenate(found)


def _together(net: CPAFunction, window: Window) -> int:
    """How many nodes go down together."""
    rows = sum(s.size for s in net.stages) + 1
    return min(_NODES, max(1, _ENTRIES // (rows * (rows + window.dimension))))

"""Zeros of a stage's switching values on segments, in exact order along each segment."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions import exact
from jaxregions.engines.points import Ledger, U, crossing, values
from jaxregions.engines.signs import Signs, one_bits

__all__ = ["Zeros", "apart_from", "in_order", "ragged", "starts_of", "undecided_runs", "zeros_on"]


class Zeros(NamedTuple):
    """Strict sign changes along edges (tail, head), sorted by edge and place.

    edge, entry: (K,) which switching value vanishes inside which edge.
    node: (K,) the distinct point, 0 .. P-1 in order of edge and place; shared by zeros that
      coincide exactly.
    first: (P,) one zero of every point. per_edge: (E,) distinct points inside each edge.
    t, error: (K,) place between tail (0) and head (1), and the bound on its error.
    """

    edge: np.ndarray
    entry: np.ndarray
    node: np.ndarray
    first: np.ndarray
    per_edge: np.ndarray
    t: np.ndarray
    error: np.ndarray


def starts_of(counts: np.ndarray) -> np.ndarray:
    """(n + 1,) where each of n consecutive runs of these lengths begins, and the end."""
    out = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=out[1:])
    return out


def ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(owner, place) of the members of runs of these lengths: 0 0 1 1 1 and 0 1 0 1 2."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(starts_of(counts)[:-1], counts)


def in_order(group: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Indices that sort by group, then by place t in [0, 1].

    One float64 key where groups are few enough: it may swap places that are very close, which
    ``apart_from`` then does not call apart.
    """
    if len(group) and int(group.max()) < 1 << 22:
        return np.argsort(group + t / 2)
    return np.lexsort((t, group))


def apart_from(t: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(K - 1,) whether each place is certainly below the next; errors absorb the rounding here."""
    return t[1:] - t[:-1] > (error[1:] + error[:-1]) * (1 + 8 * U)


def undecided_runs(t: np.ndarray, error: np.ndarray) -> list[np.ndarray]:
    """Indices of the runs of places, two or more, that are certainly before or after all others.

    Asks for a little more room than ``apart_from``, so that what that left open is in a run.
    """
    below = np.maximum.accumulate(t + error)[:-1]
    above = np.minimum.accumulate((t - error)[::-1])[::-1][1:]
    cuts = np.flatnonzero(above - below > 32 * U) + 1
    return [run for run in np.split(np.arange(len(t)), cuts) if len(run) > 1]


def zeros_on(ledger: Ledger, signs: Signs, stage: int, tail: np.ndarray, head: np.ndarray) -> Zeros:
    """Where the stage's switching values change sign inside the edges.

    Args:
      tail, head: (E,) rows of ``signs``, the ends of every edge.
    """
    positive, negative = signs.positive, signs.negative
    changes = (positive[tail] & negative[head]) | (negative[tail] & positive[head])
    edge, entry = one_bits(changes)
    a, b = tail[edge], head[edge]
    t, error = crossing(
        signs.at(a, entry),
        signs.at(b, entry),
        np.maximum(signs.error[a], signs.error[b]),
    )
    order = in_order(edge, t)
    edge, entry, t, error = edge[order], entry[order], t[order], error[order]
    same = edge[1:] == edge[:-1]
    apart = apart_from(t, error)
    ledger.decisions += int(same.sum())
    new = np.ones(len(edge), bool)  # begins a point of its own
    unsettled = np.unique(edge[1:][same & ~apart])
    if len(unsettled):
        lows = np.searchsorted(edge, unsettled)
        highs = np.searchsorted(edge, unsettled, side="right")
        for low, high in zip(lows, highs, strict=True):
            ends = int(signs.ids[tail[edge[low]]]), int(signs.ids[head[edge[low]]])
            places = [_exact_place(ledger, stage, e, *ends) for e in entry[low:high].tolist()]
            by_place = sorted(range(high - low), key=places.__getitem__)
            pick = low + np.array(by_place)
            entry[low:high] = entry[pick]
            t[low:high], error[low:high] = [exact.rounded(places[k]) for k in by_place], 2 * U
            for k in range(1, high - low):
                new[low + k] = places[by_place[k]] != places[by_place[k - 1]]
            ledger.settled_exactly += high - low - 1
    node = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    per_edge = np.bincount(edge[first], minlength=len(tail))
    return Zeros(edge, entry, node, first, per_edge, t, error)


def _exact_place(ledger: Ledger, stage: int, entry: int, tail: int, head: int):
    za, zb = values(ledger, tail, stage)[entry], values(ledger, head, stage)[entry]
    return za / (za - zb)

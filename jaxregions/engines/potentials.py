"""How many leaves a node of a sign tree is likely to have below it, learned from random descents.

A node is of one of a few kinds: its stage, how many values of its cell are still to be looked at,
and the bin of its room (a bound on the margin of its rows; nodes with little of it are hardly cut).
With p(a, b) the mean number of children of kind b that nodes of kind a were seen to have,

    leaves(a) = sum_b p(a, b) leaves(b),    1 for a region.

Only which nodes are kept depends on these numbers, not what a descent's weights stand for.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

__all__ = ["Steps", "learned", "likely"]

BINS = 28
_PER_OCTAVE = 2
_LOWEST = -9.0  # log2 of the room in the first bin


def _bins(room: np.ndarray) -> np.ndarray:
    place = (np.log2(np.maximum(room, 2.0**_LOWEST)) - _LOWEST) * _PER_OCTAVE
    return np.minimum(place, BINS - 1)


def _tally() -> defaultdict:
    return defaultdict(lambda: np.zeros((BINS, BINS)))


@dataclasses.dataclass
class Steps:
    """What was seen. moved: per stage and values left, (BINS, BINS) children by their bin and their
    parent's; nodes: (BINS, 1) the parents. entered: per stage and values left at its top, (BINS,)
    the cells."""

    moved: defaultdict = dataclasses.field(default_factory=_tally)
    nodes: defaultdict = dataclasses.field(default_factory=lambda: defaultdict(float))
    entered: defaultdict = dataclasses.field(default_factory=lambda: defaultdict(float))

    def split(self, stage: int, left: np.ndarray, room, origin, child_room) -> None:
        """Nodes with so many values left, and their children, with their parents' places."""
        kind, child = np.rint(_bins(room)).astype(int), np.rint(_bins(child_room)).astype(int)
        for many in np.unique(left).tolist():
            own = left == many
            self.nodes[stage, many] += np.bincount(kind[own], minlength=BINS)
            mine = own[origin]
            pairs = kind[origin[mine]] * BINS + child[mine]
            self.moved[stage, many] += np.bincount(pairs, minlength=BINS**2).reshape(BINS, BINS)

    def begin(self, stage: int, left: np.ndarray, room: np.ndarray) -> None:
        """Cells at the top of a stage."""
        kind = np.rint(_bins(room)).astype(int)
        for many in np.unique(left).tolist():
            self.entered[stage, many] += np.bincount(kind[left == many], minlength=BINS)


Potential = list[np.ndarray]  # per stage (values left + 1, BINS), log2


def learned(steps: Steps, stages: int) -> Potential:
    """Per stage log2 of the leaves below a node, by the values left and its bin."""
    out, below = [], np.zeros(BINS)
    for stage in reversed(range(stages)):
        rows = [below]
        for left in range(1, 1 + max((many for s, many in steps.nodes if s == stage), default=0)):
            rows.append(_mean(steps.moved[stage, left], rows[-1], steps.nodes[stage, left]))
        out.append(np.stack(rows))
        tops = [many for s, many in steps.entered if s == stage]
        if tops:
            cells = np.stack([steps.entered[stage, many] for many in tops])
            logs = np.stack([rows[many] for many in tops])
            total = (cells * np.exp2(logs - logs.max())).sum(axis=0)
            below = _logs(total, cells.sum(axis=0), logs.max(), below)
    return out[::-1]


def _mean(moved: np.ndarray, below: np.ndarray, nodes) -> np.ndarray:
    top = below.max()
    return _logs(moved @ np.exp2(below - top), nodes + np.zeros(BINS), top, below)


def _logs(total: np.ndarray, nodes: np.ndarray, top: float, otherwise: np.ndarray) -> np.ndarray:
    """log2 of the means, where no nodes were seen those of the bins nearby."""
    seen = np.flatnonzero(nodes)
    if not len(seen):
        return otherwise
    with np.errstate(divide="ignore"):
        means = np.maximum(np.log2(total[seen] / nodes[seen]) + top, 0.0)
    return np.interp(np.arange(BINS), seen, means)


def likely(potential: Sequence[np.ndarray] | None, stage: int, left, room) -> np.ndarray:
    """(N,) log2 of the leaves below nodes; 0 while nothing is known."""
    if potential is None:
        return np.zeros(len(room))
    table, place = potential[stage], _bins(room)
    left = np.minimum(left, len(table) - 1)
    first = np.minimum(place.astype(int), BINS - 2)
    share = place - first
    return table[left, first] * (1 - share) + table[left, first + 1] * share

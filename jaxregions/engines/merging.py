"""Points inside cells, and which neighbouring cells have the same maximisers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxregions.engines.points import CORNER, Ledger, U, Vertices, point, widest
from jaxregions.engines.records import Cells
from jaxregions.tracing import CPAFunction, Group, fixed_signs

__all__ = [
    "Round",
    "by_group",
    "contest_changes",
    "has_contests",
    "joined",
    "maximisers",
    "per_window",
    "played",
    "witnesses",
]


def joined(cells: Cells, same: np.ndarray) -> np.ndarray:
    """(F,) a label 0, 1, ... of every cell: equal for cells connected by facets in ``same``."""
    if not same.any():
        return np.arange(len(cells.window), dtype=np.int32)
    pairs = cells.left[same], cells.right[same]
    graph = coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(len(cells.window),) * 2)
    return connected_components(graph, directed=False)[1]


def witnesses(ledger: Ledger, cells: Cells) -> Ledger:
    """A ledger whose vertices are the cells' witness points.

    Where the float64 witness is not proven to be inside, the exact mean of the exact vertices is.
    """
    none = np.full(len(cells.window), CORNER)
    error = np.zeros(len(cells.window))
    if not cells.inside.all():
        error[~cells.inside] = _spread(ledger, cells)[~cells.inside]
    at = Vertices(cells.witness, error, cells.window, none, none, none, none, none)
    inner = Ledger(ledger.net, ledger.windows, at, pause=ledger.pause)
    for cell in np.flatnonzero(~cells.inside).tolist():
        corner = cells.corner[cells.start[cell] : cells.start[cell + 1]].tolist()
        total = sum((point(ledger, c) for c in corner[1:]), start=point(ledger, corner[0]))
        inner.points[cell] = total / len(corner)
    return inner


def _spread(ledger: Ledger, cells: Cells) -> np.ndarray:
    """Bound on the distance from the float64 witness to the exact mean of the exact vertices."""
    error = np.maximum.reduceat(ledger.vertices.error[cells.corner], cells.start[:-1])
    size = np.maximum.reduceat(
        widest(ledger.vertices.u.take(cells.corner, axis=0)), cells.start[:-1]
    )
    corners = np.diff(cells.start)
    return (error + (corners + 2) * 2 * U * size) * (1 + 8 * U)


def has_contests(net: CPAFunction) -> bool:
    """Whether some signs only tell the order of candidates that lose anyway."""
    return any(g.contest is not None for s in net.stages for g in s.groups)


def contest_changes(
    net: CPAFunction, cells: Cells, signs: list[np.ndarray], windows: int
) -> tuple[np.ndarray, np.ndarray]:
    """What changes across facets beside the order of losers.

    Returns:
      (G,) whether anything does, and (windows, S) the units of each stage that do somewhere.
    """
    changed = np.zeros(len(cells.left), bool)
    keys: list[list[np.ndarray]] = [[] for _ in net.stages]
    contests: dict[int, list[Round]] = {}
    for level, group, part, unit in by_group(net, signs):
        if group.contest is None:
            facet, entry = np.nonzero(part[cells.left] != part[cells.right])
            changed[facet] = True
            keys[level].append(_keys(cells, facet, unit[entry], net.stages[level].units))
        else:
            one = played(net, level, group, part, unit)
            contests.setdefault(group.contest.number, []).append(one)
    for rounds in contests.values():
        members = maximisers(rounds)
        real = (members[cells.left] != members[cells.right]).any(axis=1)
        changed |= real.any(axis=tuple(range(1, real.ndim)))
        for level, _, play, units in rounds:
            differ = (play[cells.left] != play[cells.right]) & real[:, None]
            at = np.nonzero(differ)
            keys[level].append(_keys(cells, at[0], units[at[1:]], net.stages[level].units))
    hits = [
        np.bincount(np.unique(np.concatenate(k)) // max(s.units, 1), minlength=windows)
        for k, s in zip(keys, net.stages, strict=True)
    ]
    return changed, np.stack(hits, axis=1)


class Round(NamedTuple):
    """One round of a contest: its stage, and signs (F, matches, ...) and units (matches, ...)."""

    level: int
    smallest: bool
    play: np.ndarray
    units: np.ndarray


def by_group(
    net: CPAFunction, signs: list[np.ndarray]
) -> Iterator[tuple[int, Group, np.ndarray, np.ndarray]]:
    """(stage, group, signs (F, entries), unit (entries,)) of every group."""
    for level, (stage, sign) in enumerate(zip(net.stages, signs, strict=True)):
        offset = 0
        for group in stage.groups:
            rows = group.rows
            count = math.prod(group.left.shape) if rows is None else int(rows.sum())
            here = slice(offset, offset + count)
            yield level, group, sign[:, here], stage.unit[here]
            offset += count


def played(net: CPAFunction, level: int, group: Group, part: np.ndarray, unit: np.ndarray) -> Round:
    """A round of a contest, its constant comparisons filled in."""
    assert group.contest is not None
    rows = np.ones(group.left.shape, bool) if group.rows is None else group.rows
    play = np.empty((len(part), *group.left.shape), np.int8)
    play[:] = fixed_signs(net, group)
    play[:, rows] = part
    units = np.full(group.left.shape, -1)
    units[rows] = unit
    return Round(level, group.contest.smallest, play, units)


def _keys(cells: Cells, facet: np.ndarray, unit: np.ndarray, units: int) -> np.ndarray:
    return np.unique(cells.window[cells.left[facet]] * units + unit)


def maximisers(rounds: list[Round]) -> np.ndarray:
    """(F, candidates, ...) which candidates are largest on each cell."""
    candidates = 1 + sum(r.play.shape[1] for r in rounds)
    first = rounds[0].play
    members = np.zeros((len(first), candidates, candidates, *first.shape[2:]), bool)
    members[:, np.arange(candidates), np.arange(candidates)] = True
    for _, smallest, play, _ in rounds:
        half = play.shape[1]
        left, right, rest = np.split(members, [half, 2 * half], axis=1)
        wins = (-play if smallest else play)[:, :, None]
        winners = (left & (wins >= 0)) | (right & (wins <= 0))
        members = np.concatenate([winners, rest], axis=1)
    return members[:, 0]


def per_window(cells: Cells, label: np.ndarray) -> np.ndarray:
    """How many labels every window that has cells has, in order of windows."""
    owner = np.zeros(int(label.max()) + 1, np.int64)
    owner[label] = cells.window
    return np.unique(owner, return_counts=True)[1]

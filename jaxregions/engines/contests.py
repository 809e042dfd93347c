"""Regions of functions with maxima over many candidates, from cells of equal signs.

The order of losers makes cells, not regions. A set of points with the same maximisers, and the same
signs elsewhere, is convex: stage by stage the function is affine on it. So the regions are the
different patterns, and no facets are needed.
"""

from __future__ import annotations

import numpy as np

from jaxregions.engines.merging import Round, maximisers
from jaxregions.engines.points import CORNER, Ledger, Vertices
from jaxregions.engines.signs import patterns
from jaxregions.tracing import CPAFunction, fixed_signs
from jaxregions.windows import Window

__all__ = ["merged_regions"]


def merged_regions(
    net: CPAFunction, windows: Window, window: np.ndarray, witness: np.ndarray
) -> np.ndarray:
    """(W,) regions of each window.

    Args:
      windows: one leading axis.
      window, witness: (C,), (C, k) a point, in slice coordinates, of every cell of equal signs.
    """
    none = np.full(len(window), CORNER)
    points = Vertices(witness, np.zeros(len(window)), window, none, none, none, none, none)
    signs = patterns(Ledger(net, windows, points), len(net.stages))
    columns = [window[:, None]]
    contests: dict[int, list[Round]] = {}
    for level, (stage, sign) in enumerate(zip(net.stages, signs, strict=True)):
        offset = 0
        for group in stage.groups:
            rows = np.ones(group.left.shape, bool) if group.rows is None else group.rows
            count = int(rows.sum())
            part = sign[:, offset : offset + count]
            offset += count
            if group.contest is None:
                columns.append(part)
                continue
            play = np.empty((len(sign), *group.left.shape), np.int8)
            play[:] = fixed_signs(net, group)
            play[:, rows] = part
            one = Round(level, group.contest.smallest, play, rows)
            contests.setdefault(group.contest.number, []).append(one)
    columns += [maximisers(rounds).reshape(len(window), -1) for rounds in contests.values()]
    different = np.unique(np.concatenate(columns, axis=1), axis=0)
    return np.bincount(different[:, 0], minlength=len(windows.center))

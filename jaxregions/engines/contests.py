"""Regions of functions with maxima over many candidates, from cells of equal signs.

The order of losers makes cells, not regions. A set of points with the same maximisers, and the same
signs elsewhere, is convex: stage by stage the function is affine on it. So the regions are the
different patterns, and no facets are needed.
"""

from __future__ import annotations

import numpy as np

from jaxregions.engines.merging import Round, by_group, maximisers, played
from jaxregions.engines.points import ledger_of
from jaxregions.engines.signs import patterns
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["merged_regions"]


def merged_regions(
    net: CPAFunction,
    windows: Window,
    window: np.ndarray,
    witness: np.ndarray,
    exactly: dict[int, np.ndarray],
) -> np.ndarray:
    """(W,) regions of each window.

    Args:
      windows: one leading axis.
      window, witness: (C,), (C, k) a point, in slice coordinates, of every cell of equal signs.
      exactly: by row those that are no floats, in rationals.
    """
    if not len(window):  # nothing was finished
        return np.zeros(len(windows.center), np.int64)
    signs = patterns(ledger_of(net, windows, window, witness, exactly), len(net.stages))
    columns = [window[:, None]]
    contests: dict[int, list[Round]] = {}
    for level, group, part, unit in by_group(net, signs):
        if group.contest is None:
            columns.append(part)
        else:
            one = played(net, level, group, part, unit)
            contests.setdefault(group.contest.number, []).append(one)
    columns += [maximisers(rounds).reshape(len(window), -1) for rounds in contests.values()]
    different = np.unique(np.concatenate(columns, axis=1), axis=0)
    return np.bincount(different[:, 0], minlength=len(windows.center))

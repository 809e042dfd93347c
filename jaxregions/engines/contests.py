"""Regions of functions with maxima over many candidates, from cells of equal signs.

The order of losers makes cells, not regions. A set of points with the same maximisers, and the same
signs elsewhere, is convex: stage by stage the function is affine on it. So the regions are the
different patterns, and no facets are needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxregions.engines.frontier import Stopped
from jaxregions.engines.merging import Round, by_group, maximisers, played
from jaxregions.engines.points import Ledger, ledger_of
from jaxregions.engines.signs import patterns
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["merged_regions"]

_CELLS = 1 << 14  # looked at together


def merged_regions(
    net: CPAFunction,
    windows: Window,
    window: np.ndarray,
    witness: np.ndarray,
    exactly: dict[int, np.ndarray],
    pause: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """(W,) regions of each window, and whether all of its cells were looked at; else a proven lower
    bound.

    Args:
      windows: one leading axis.
      window, witness: (C,), (C, k) a point, in slice coordinates, of every cell of equal signs.
      exactly: by row those that are no floats, in rationals.
      pause: called between parts of the work; by Stopped it ends it.
    """
    total, done, parts = len(windows.center), 0, []
    try:
        while done < len(window):
            high = min(len(window), done + _CELLS)
            rows = {i - done: point for i, point in exactly.items() if done <= i < high}
            some = ledger_of(net, windows, window[done:high], witness[done:high], rows)
            parts.append(_different(net, some))
            done = high
            if done < len(window):
                pause()
    except Stopped:
        pass
    every, looked = (np.bincount(some, minlength=total) for some in (window, window[:done]))
    if not parts:  # nothing was finished
        return np.zeros(total, np.int64), looked == every
    different = np.unique(np.concatenate(parts), axis=0)
    return np.bincount(different[:, 0], minlength=total), looked == every


def _different(net: CPAFunction, inner: Ledger) -> np.ndarray:
    """The different patterns at some points, (D, ...): their windows first."""
    signs = patterns(inner, len(net.stages))
    window = inner.vertices.window
    columns = [window[:, None]]
    contests: dict[int, list[Round]] = {}
    for level, group, part, unit in by_group(net, signs):
        if group.contest is None:
            columns.append(part)
        else:
            one = played(net, level, group, part, unit)
            contests.setdefault(group.contest.number, []).append(one)
    columns += [maximisers(rounds).reshape(len(window), -1) for rounds in contests.values()]
    return np.unique(np.concatenate(columns, axis=1), axis=0)

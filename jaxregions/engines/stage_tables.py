"""What every stage did to the cells before it, read off the signs of the last cells.

A cell after stage s is a set of last cells with equal signs in the stages up to s. So whatever
engine found the cells, their signs tell which cell lies in which, and a switching value cuts a cell
iff it has both signs on last cells inside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions.engines.records import hits
from jaxregions.engines.signs import packed
from jaxregions.tracing import CPAFunction

__all__ = ["StageCuts", "stage_cuts"]


class StageCuts(NamedTuple):
    """One stage, all windows together.

    Cells are numbered window after window, those of a window in the order of their signs: of the
    first stage, entry by entry, -1 before 0 before 1; where these agree, of the second; and so on.

    window: (F,) of the cells before the stage. children: (F,) cells that each falls into.
    cut_cell, cut_entry: (C,) a switching value that takes both signs inside the cell; ascending.
    parent: (G,) the cell before the stage that each cell after it lies in; ascending.
    hits: (W,) units of the stage whose sign changes somewhere in the window.
    """

    window: np.ndarray
    children: np.ndarray
    cut_cell: np.ndarray
    cut_entry: np.ndarray
    parent: np.ndarray
    hits: np.ndarray

    @property
    def by_window(self) -> np.ndarray:
        """(W,) cells after the stage."""
        return np.bincount(self.window[self.parent], minlength=len(self.hits))


def stage_cuts(
    net: CPAFunction, window: np.ndarray, signs: list[np.ndarray], windows: int
) -> list[StageCuts]:
    """One record a stage.

    Args:
      window: (F,) of the last cells. signs: per stage (F, size), -1, 0 or 1 on each of them.
    """
    words = [_ordered(sign) for sign in signs]
    order = np.lexsort([*np.concatenate(words, axis=1).T[::-1], window] if words else [window])
    window, out = window[order], []
    begins = np.append(True, window[1:] != window[:-1])[: len(window)]
    first = np.flatnonzero(begins)
    for layer, sign, word in zip(net.stages, signs, words, strict=True):
        sign, word = sign[order], word[order]
        before, cell = np.flatnonzero(begins), np.cumsum(begins) - 1
        plus, minus = (np.logical_or.reduceat(s, before) for s in (sign > 0, sign < 0))
        seen = np.zeros((3, windows, layer.size), bool)
        for some, of in zip(seen, (sign > 0, sign < 0, sign == 0), strict=True):
            some[window[first]] = np.logical_or.reduceat(of, first)
        begins = begins.copy()
        begins[1:] |= (word[1:] != word[:-1]).any(axis=1)
        parent, (cut_cell, cut_entry) = cell[begins], np.nonzero(plus & minus)
        children = np.bincount(parent, minlength=len(before))
        found = hits(np.stack([packed(s) for s in seen]), layer.unit)
        out.append(StageCuts(window[before], children, cut_cell, cut_entry, parent, found))
    return out


def _ordered(sign: np.ndarray) -> np.ndarray:
    """(F, words) uint64 that compare as the rows do: two bits an entry, the first ones on top."""
    bits = np.stack([sign > 0, sign == 0], axis=2).reshape(len(sign), 2 * sign.shape[1])
    some = np.packbits(bits, axis=1)
    out = np.zeros((len(sign), -(-some.shape[1] // 8) * 8), np.uint8)
    out[:, : some.shape[1]] = some
    words = out.view(">u8").astype(np.uint64)
    return words[:, (words != words[:1]).any(axis=0)]

"""Per-stage tables read off a certificate: what cuts which cell, and into how many."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxregions.engines.certificates import ABOVE, BELOW, LEAF, OPEN, SPLIT, ZERO, Certificate
from jaxregions.tracing import CPAFunction

__all__ = ["StageCuts", "stage_cuts"]

_POSITIVE, _NEGATIVE = (SPLIT, ABOVE), (SPLIT, BELOW)  # steps that show the sign


class StageCuts(NamedTuple):
    """What one stage does to the cells before it, all windows together.

    cell: (F,) the certificate's numbers of the cells before the stage, window after window.
    window: (F,) their windows. children: (F,) cells that each falls into.
    cut_cell, cut_entry: (C,) a switching value that takes both signs inside the cell, by its place
      in ``cell``; ascending.
    new, parent: (G,) the certificate's numbers of the cells after the stage, window after window,
      and the place of each one's parent in ``cell``.
    hits: (W,) units of the stage whose sign changes somewhere in the window.
    """

    cell: np.ndarray
    window: np.ndarray
    children: np.ndarray
    cut_cell: np.ndarray
    cut_entry: np.ndarray
    new: np.ndarray
    parent: np.ndarray
    hits: np.ndarray


def stage_cuts(net: CPAFunction, certificate: Certificate) -> list[StageCuts]:
    """One table a stage.

    Raises:
      ValueError: a certificate that is not of a finished count, or of another function.
    """
    c, stages = certificate, len(net.stages)
    _require_finished(c, stages)
    owner = _owners(c)
    decided = np.flatnonzero(c.kind != LEAF)
    at = owner[decided]
    out = []
    for stage, layer in enumerate(net.stages):
        cell, new = (_of_stage(c, s) for s in (stage, stage + 1))
        place = np.full(len(c.window), -1)
        place[cell] = np.arange(len(cell))
        here = c.stage[at] == stage
        steps, row = decided[here], place[at[here]]
        kind, entry = c.kind[steps], c.entry[steps]
        if (entry >= layer.size).any():
            raise ValueError(
                f"certificate: expected {layer.size} switching values in stage {stage}"
            )
        # On both sides of a coincident value another one has one sign each: no split tells.
        key = row * max(layer.size, 1) + entry
        positive, negative = key[np.isin(kind, _POSITIVE)], key[np.isin(kind, _NEGATIVE)]
        cut_cell, cut_entry = np.divmod(np.intersect1d(positive, negative), max(layer.size, 1))
        parent = place[c.parent[new]]
        window = c.window[cell]
        out.append(
            StageCuts(
                cell,
                window,
                np.bincount(parent, minlength=len(cell)),
                cut_cell,
                cut_entry,
                new,
                parent,
                _hits(layer, kind, entry, window[row], int((c.parent < 0).sum())),
            )
        )
    return out


def _require_finished(c: Certificate, stages: int) -> None:
    start = c.before < 0
    after = np.bincount(c.before[~start], minlength=len(c.kind))
    begun = np.bincount(-1 - c.before[start], minlength=len(c.window))
    wanted = np.where(c.kind == LEAF, 0, np.where(c.kind == SPLIT, 2, 1))
    loose = (after != wanted).any() or (begun != (c.stage < stages)).any()
    if c.stage.max(initial=0) > stages or loose or (c.kind == OPEN).any():
        raise ValueError(
            "certificate: expected that of a finished count of this function, received one that "
            "leaves cells open or has other stages"
        )


def _of_stage(c: Certificate, stage: int) -> np.ndarray:
    """The cells before this stage, window after window, those of one parent together."""
    cells = np.flatnonzero(c.stage == stage)
    return cells[np.lexsort((c.parent[cells], c.window[cells]))]


def _owners(c: Certificate) -> np.ndarray:
    """(T,) the cell whose tree each step belongs to."""
    at = c.before
    while (later := at >= 0).any():  # twice as many steps back each time, until the tree begins
        at = np.where(later, at[at], at)
    return -1 - at


def _hits(layer, kind, entry, window, windows: int) -> np.ndarray:
    """Units with a value that is positive and negative, or zero and not, on cells of a window."""
    seen = np.zeros((3, windows, layer.size), bool)
    for some, kinds in zip(seen, (_POSITIVE, _NEGATIVE, (ZERO,)), strict=True):
        rows = np.isin(kind, kinds)
        some[window[rows], entry[rows]] = True
    positive, negative, flat = seen
    at, changes = np.nonzero((positive & negative) | (flat & (positive | negative)))
    units = max(layer.units, 1)
    key = np.unique(at * units + layer.unit[changes])
    return np.bincount(key // units, minlength=windows)

"""What a partition is."""

from __future__ import annotations

import dataclasses
import importlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxregions._records import record
from jaxregions.engines.frontier import Status
from jaxregions.engines.maps import affine_maps, outputs_of, some_maps
from jaxregions.windows import Window

__all__ = ["Partition", "StageTable"]

_MAPS = ("slope", "intercept")
_MAKING = threading.Lock()


class StageTable(NamedTuple):
    """What one stage did: its parents are the cells after the stage before.

    parents, regions: number of cells before and after. hits: units whose piece changes inside the
    window, -1: not known. cut_parent, cut_unit: (C,) which unit cuts which parent; a unit with
    several breakpoints comes once per breakpoint. children: (parents,) cells that each falls into.
    parent: (regions,) the parent of every cell.
    """

    parents: int
    regions: int
    hits: int
    cut_parent: np.ndarray
    cut_unit: np.ndarray
    children: np.ndarray
    parent: np.ndarray


@record
class Partition:
    """The exact partition of one window of dimension k, from ``jr.partition``.

    Coordinates are slice coordinates u relative to the window's centre; ``window.points(u)`` are
    the input points (center + u without a basis). F cells, V vertices, G facets, S stages, m
    outputs (flattened).

    window: the window.
    vertices: (V, k) float64; vertex_error: (V,) bound on their distance, per coordinate, from the
      exact ones. k >= 3 in a degenerate position: by Qhull, every cell with its own, none where
      Qhull gives up; the bounds hold if it names the right constraints. k >= 7: none.
    start, corner: (F + 1,), (H,) cell f has the vertices corner[start[f]:start[f + 1]],
      counter-clockwise for k = 2.
    witness: (F, k) a point inside each cell; witness_inside: (F,) whether that is proven for the
      float64 numbers (thinner cells are decided at an exact rational point).
    volume: (F,) lengths, areas, volumes in input space; NaN for k >= 7 and where Qhull gives up.
    patterns: per stage (F, size) int8, the sign of every switching value on the cell: -1, 1, or 0
      where it vanishes on the whole cell.
    slope, intercept: (F, m, k), (F, m): f = slope u + intercept on the cell, float64; where float64
      does not know the signs at the witness, made in rationals and rounded. Above 256 MiB they are
      made when first asked for; ``maps`` makes those of some cells.
    region, affine_region: (F,) labels of the activation and the affine region of each cell.
    left, right: (G,) the cells on both sides of each facet; facet: (G, k) its vertices for k = 1
      and 2, (G, 0) above, where they are those that both cells have in common.
    facet_stage, facet_unit: (G,) a unit that switches there.
    tables: per stage a ``StageTable``.
    activation_regions, affine_regions: the counts; a lower bound and -1 if not COMPLETE.
    certified: every decision was proven in float64 or made in rationals; always.
    status: why it ended, a ``Status``; if not COMPLETE, the cells of the stages that were finished,
      and for k >= 3 no facets, vertices and volumes that there was no time for.
    decisions, settled_exactly: float64 decisions, and how many were made again in rationals.
    """

    window: Window
    vertices: np.ndarray
    vertex_error: np.ndarray
    start: np.ndarray
    corner: np.ndarray
    witness: np.ndarray
    witness_inside: np.ndarray
    volume: np.ndarray
    patterns: tuple[np.ndarray, ...]
    slope: np.ndarray
    intercept: np.ndarray
    region: np.ndarray
    affine_region: np.ndarray
    left: np.ndarray
    right: np.ndarray
    facet: np.ndarray
    facet_stage: np.ndarray
    facet_unit: np.ndarray
    tables: tuple[StageTable, ...]
    activation_regions: int
    affine_regions: int
    certified: bool
    status: Status
    decisions: int
    settled_exactly: int

    def maps(self, cells: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """f = A u + a on some of the cells: ``slope[cells], intercept[cells]``, the others unmade.

        Args:
          cells: (n,) their numbers, or a slice; one that follows the order of cells is faster.

        Returns:
          A (n, m, k) and a (n, m).

        Raises:
          ValueError: not integers, or cells that do not exist.
        """
        count = len(self.witness)
        if not isinstance(cells, slice):
            cells = np.asarray(cells)
            if cells.shape == (0,):
                cells = cells.astype(np.int64)
            if cells.ndim != 1 or not np.issubdtype(cells.dtype, np.integer):
                raise ValueError(
                    "cells: expected a list of cells' numbers or a slice, "
                    f"received {cells.dtype} of shape {cells.shape}"
                )
            if len(cells) and not (cells.min() >= 0 and cells.max() < count):
                raise ValueError(
                    f"cells: expected 0 to {count - 1}, received {cells.min()} to {cells.max()}"
                )
        family = vars(self).get("_family")
        if family is None:
            return self.slope[cells], self.intercept[cells]
        with jax.ensure_compile_time_eval():
            return some_maps(family, np.arange(count)[cells])

    @property
    def outputs(self) -> int:
        """m, the number of outputs, flattened."""
        family = vars(self).get("_family")
        return self.slope.shape[1] if family is None else outputs_of(family.ledger.net)

    if not TYPE_CHECKING:  # which shall find attributes that do not exist

        def __getattr__(self, name: str) -> Any:
            """slope and intercept, where ``_family`` stands for maps that nobody asked for yet."""
            fields = vars(self)
            if name in _MAPS:
                with _MAKING, jax.ensure_compile_time_eval():
                    if name not in fields and "_family" in fields:
                        fields |= zip(_MAPS, affine_maps(fields["_family"]), strict=True)
                        del fields["_family"]
            if name not in fields:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return fields[name]

    def __getstate__(self) -> dict[str, Any]:  # of copies: networks cannot be pickled
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        return (
            f"Partition({len(self.witness)} cells, {self.activation_regions} activation regions, "
            f"{self.affine_regions} affine regions, {Status(self.status).name})"
        )

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """``jr.plotting.plot_partition(self, ax, **options)``; needs matplotlib."""
        plotting = importlib.import_module("jaxregions.plotting")  # a room above this one
        return plotting.plot_partition(self, ax, **options)

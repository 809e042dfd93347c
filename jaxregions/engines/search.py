"""What one search over cells shares: cells, limits, tallies."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from jaxregions.engines.certificates import ABOVE, BELOW, SPLIT, ZERO, Recorder
from jaxregions.engines.enclosures import Rows, exact_rows, exact_spans, rounded_rows
from jaxregions.engines.frontier import Limits, Status, Stopped
from jaxregions.engines.longsteps import FAR
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = [
    "Cell",
    "Search",
    "Stopped",
    "coarse_rows",
    "exact_row",
    "exactly",
    "new_search",
    "settled_rows",
]

_COARSE = 2.0**-8  # rows with a larger relative error are made exactly


@dataclasses.dataclass(slots=True, eq=False)
class Cell:
    """A cell of the stages before ``stage``.

    number: in the certificate. u, step: (k,) witness, and steps to k more points of the closed
    cell. literal: (m, 3) stage, entry and sign of the switching values that bound it; slope, value,
    error: (m, ...) these rows, signed, in units of the radii and divided by ``scale``. weight,
    room: as of a node. bases: of these rows, basic (m,), bound (k,). rows, exact: of its own stage.
    spans: witness and steps in rationals, where floats are too coarse; u and step are near them.
    """

    window: int
    stage: int
    number: int
    parent: Cell | None
    u: np.ndarray
    step: np.ndarray
    literal: np.ndarray
    slope: np.ndarray
    value: np.ndarray
    error: np.ndarray
    scale: np.ndarray
    weight: float = 1.0
    room: float = FAR
    bases: tuple[np.ndarray, np.ndarray] | None = None
    rows: Rows | None = None
    exact: tuple[np.ndarray, np.ndarray] | None = None
    spans: tuple[np.ndarray, np.ndarray] | None = None


@dataclasses.dataclass(eq=False)
class Search:
    """bound: (W,) proven regions. splits: (W, S). pending: (W,) open cells. going: (W,) not stopped
    by a limit. seen: per stage (3, W, size): where a switching value is positive, negative,
    identically zero on some cell. keep: make the cells of the last stage, too.
    """

    net: CPAFunction
    windows: Window
    radius: np.ndarray
    limits: Limits
    recorder: Recorder | None
    bound: np.ndarray
    splits: np.ndarray
    pending: np.ndarray
    going: np.ndarray
    seen: list[np.ndarray]
    keep: bool = False
    status: Status = Status.COMPLETE
    programs: int = 0
    settled_exactly: int = 0

    def out_of_time(self) -> bool:
        if time.monotonic() > self.limits.deadline:
            self.status = Status.MAX_SECONDS
        if self.limits.halt is not None and self.limits.halt.is_set():
            self.status = Status.INTERRUPTED
        return self.status != Status.COMPLETE

    def require_time(self) -> None:
        """Between the parts of what takes long.

        Raises:
          Stopped: there is none left.
        """
        if self.out_of_time():
            raise Stopped

    def split(self, stage: int, window: np.ndarray) -> None:
        """One more region in each of these windows, once for every time it is named."""
        more = np.bincount(window, minlength=len(self.bound))
        self.splits[:, stage] += more
        self.bound += more
        if self.limits.regions is not None:
            self.going &= self.bound <= self.limits.regions

    def saw(self, stage: int, window: np.ndarray, kind: np.ndarray) -> None:
        """kind (P, size): what became of each switching value in cells of these windows."""
        for seen, names in zip(self.seen[stage], _SHOWS, strict=True):
            np.logical_or.at(seen, window, np.isin(kind, names))

    def saw_some(self, stage: int, window: np.ndarray, unit: np.ndarray, kind: np.ndarray) -> None:
        for seen, names in zip(self.seen[stage], _SHOWS, strict=True):
            some = np.isin(kind, names)
            seen[window[some], unit[some]] = True


_SHOWS = ((SPLIT, ABOVE), (SPLIT, BELOW), (ZERO,))


def new_search(
    net: CPAFunction,
    windows: Window,
    limits: Limits,
    recorder: Recorder | None = None,
    keep: bool = False,
) -> Search:
    """A search that has not begun."""
    count, stages = len(windows.center), len(net.stages)
    return Search(
        net,
        windows,
        np.array(windows.radii(), np.float64),
        limits,
        recorder,
        np.ones(count, np.int64),
        np.zeros((count, stages), np.int64),
        np.full(count, int(stages > 0)),
        np.ones(count, bool),
        [np.zeros((3, count, s.size), bool) for s in net.stages],
        keep,
    )


def exactly(search: Search, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """The exact rows of the cell's own stage, in input units."""
    if cell.exact is None:
        spans = cell.spans or exact_spans(cell.u, cell.step)
        where = search.net, search.windows, cell.window, *spans, cell.stage
        cell.exact = exact_rows(*where, search.require_time)
    return cell.exact


def exact_row(search: Search, cell: Cell, stage: int, entry: int, sign: int) -> tuple[Any, Any]:
    """The exact slope and value of one switching value of this or an earlier stage, signed."""
    while cell.stage > stage:
        assert cell.parent is not None
        cell = cell.parent
    slope, value = exactly(search, cell)
    return slope[entry] * sign, value[entry] * sign


def coarse_rows(search: Search, cell: Cell) -> Rows:
    """The rows of the cell's stage, from the exact ones."""
    search.require_time()
    radius = search.radius[cell.window]
    return rounded_rows(search.net, *exactly(search, cell), radius)


@np.errstate(all="ignore")
def settled_rows(search: Search, cell: Cell) -> Rows:
    """The rows of the cell's stage, exact ones where floats do not know them well."""
    rows = cell.rows
    assert rows is not None
    extent = np.abs(rows.value) + np.abs(rows.slope) @ search.radius[cell.window]
    decided = np.abs(rows.value) - (extent - np.abs(rows.value)) > rows.error
    coarse = rows.lost | (~rows.zero & ~decided & (rows.error > _COARSE * extent))
    if cell.spans is not None or not coarse.any():
        return rows
    search.settled_exactly += int(coarse.sum())
    made = coarse_rows(search, cell)
    return Rows(
        *(
            np.where(coarse.reshape(-1, *[1] * (old.ndim - 1)), new, old)
            for old, new in zip(rows, made, strict=True)
        )
    )
